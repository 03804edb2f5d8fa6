#include "workers/speed_cache.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/files.h"
#include "base/version.h"

namespace tandem::workers {
namespace {

using nlohmann::json;
using scheduler::LatencyLearner;

constexpr int kFormat = 1;
/// A file is a few kilobytes.
constexpr size_t kMostBytes = 1 << 20;

std::string Sha256Hex(const std::string& text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  EVP_Digest(text.data(), text.size(), digest.data(), &size, EVP_sha256(), nullptr);
  return absl::BytesToHexString({reinterpret_cast<const char*>(digest.data()), size});
}

json ToJson(const LatencyLearner::Learned& learned) {
  return {{"matrix", learned.fit.matrix},
          {"vector", learned.fit.vector},
          {"prior_scale", learned.fit.prior_scale},
          {"spread", learned.fit.spread},
          {"samples", learned.fit.samples},
          {"factor_ratios", learned.factor_ratios},
          {"factor_weights", learned.factor_weights}};
}

/// Throws unless all numbers are finite and not negative.
template <typename Numbers>
void Read(const json& from, Numbers& to) {
  if (from.size() != to.size()) throw std::invalid_argument("a list of another length");
  for (size_t i = 0; i < to.size(); ++i) {
    if constexpr (requires { to[i].size(); }) {
      Read(from.at(i), to[i]);
    } else {
      to[i] = from.at(i).template get<double>();
      if (!std::isfinite(to[i]) || to[i] < 0) throw std::invalid_argument("a number out of range");
    }
  }
}

/// Throws what nlohmann::json does, or std::invalid_argument.
LatencyLearner::Learned FromJson(const json& from) {
  LatencyLearner::Learned learned;
  Read(from.at("matrix"), learned.fit.matrix);
  Read(from.at("vector"), learned.fit.vector);
  std::array<double, 3> rest{};
  Read(json{from.at("prior_scale"), from.at("spread"), from.at("samples")}, rest);
  learned.fit.prior_scale = rest[0];
  learned.fit.spread = rest[1];
  learned.fit.samples = static_cast<uint64_t>(std::min(rest[2], 1e15));
  Read(from.at("factor_ratios"), learned.factor_ratios);
  Read(from.at("factor_weights"), learned.factor_weights);
  return learned;
}

}  // namespace

std::string DefaultSpeedCachePath() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return absl::StrCat(cache, "/tandem");
  const char* home = std::getenv("HOME");
  return home != nullptr && *home != '\0' ? absl::StrCat(home, "/.cache/tandem") : "";
}

std::string SpeedKey(const Model& model, const EngineOptions& options, const std::string& device) {
  const bool prefill = options.use == EngineOptions::Use::kPrefill;
  return absl::StrCat(
      prefill ? "prefill" : "decode", " model=", absl::BytesToHexString(model.fingerprint()),
      " tandem=", kVersion, " llama=", kLlamaCommit, " device=", device,
      " threads=", options.threads, " context_tokens=", options.context_tokens,
      " max_sequences=", options.max_sequences, " step_tokens=", options.step_tokens,
      " kv_tokens=", options.kv_tokens, " k_type=", options.k_type, " v_type=", options.v_type,
      " flash_attention=", options.flash_attention);
}

std::string SpeedCache::PathOf(const std::string& key) const {
  return absl::StrCat(folder_, "/speed-", Sha256Hex(key).substr(0, 24), ".json");
}

absl::StatusOr<LatencyLearner::Learned> SpeedCache::Load(const std::string& key) const {
  if (folder_.empty()) return absl::NotFoundError("nothing is kept: there is no folder for it");
  const std::string path = PathOf(key);
  std::ifstream in(path, std::ios::binary);
  if (!in.is_open()) return absl::NotFoundError(absl::StrCat("there is no ", path));
  std::string text(kMostBytes, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  const auto damaged = [&path](const std::string& why) {
    return absl::DataLossError(absl::StrCat(path, " is damaged (", why, ")"));
  };
  try {
    const json file = json::parse(text);
    if (file.at("format") != kFormat) return damaged("another format");
    if (file.at("key") != key) return damaged("of another key");
    const json& learned = file.at("learned");
    if (file.at("sha256") != Sha256Hex(key + learned.dump())) return damaged("wrong checksum");
    return FromJson(learned);
  } catch (const std::exception& error) {
    return damaged(error.what());
  }
}

absl::Status SpeedCache::Save(const std::string& key,
                              const LatencyLearner::Learned& learned) const {
  if (folder_.empty()) {
    return absl::UnavailableError(
        "neither XDG_CACHE_HOME nor HOME is set; speed_cache_path names a folder");
  }
  const std::string path = PathOf(key);
  std::error_code ignored;
  std::filesystem::create_directories(folder_, ignored);
  // Parsed back before it is hashed: a reader hashes numbers as it has read them.
  const json content = json::parse(ToJson(learned).dump());
  const json file = {{"format", kFormat},
                     {"key", key},
                     {"learned", content},
                     {"sha256", Sha256Hex(key + content.dump())}};
  return WriteWholeFile(path, file.dump(1) + "\n");
}

}  // namespace tandem::workers
