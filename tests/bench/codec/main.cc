// `./dev bench codec`: how fast KV is encoded and decoded, on real KV of a real model, by every
// instruction set that this CPU has, next to memcpy and zstd -1 on the same bytes, in one run and
// taking turns.
#include <zstd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "kvstore/codec/codec.h"
#include "workers/calibration/replay.h"
#include "workers/engine/geometry.h"

ABSL_FLAG(std::string, model, "models/demo-q8_0.gguf", "Whose KV");
ABSL_FLAG(std::string, profile, "models/demo-q8_0.kvprofile", "Its KV profile");
ABSL_FLAG(std::string, text, "docs/operate.md", "What the model reads");
ABSL_FLAG(uint32_t, context, 1024, "Tokens of it, in chunks of 256");
ABSL_FLAG(uint32_t, rounds, 15, "Rounds, of which the medians are shown");
ABSL_FLAG(std::string, json, "", "Write the figures there");

namespace tandem::bench {
namespace {

using kvstore::KvChunk;
using kvstore::codec::Codec;
using kvstore::codec::Isa;
using kvstore::codec::Level;
using kvstore::codec::LevelName;
using Bytes = std::vector<uint8_t>;

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "bench_codec: %s\n", value.status().ToString().c_str());
  std::exit(1);
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream content;
  content << in.rdbuf();
  if (!in || content.str().empty()) {
    std::fprintf(stderr, "bench_codec: cannot read %s\n", path.c_str());
    std::exit(1);
  }
  return content.str();
}

/// Seconds that `work` takes, repeated until that is long enough for the clock.
double Seconds(const std::function<void()>& work) {
  using Clock = std::chrono::steady_clock;
  for (size_t repeats = 1;; repeats *= 4) {
    const auto began = Clock::now();
    for (size_t i = 0; i < repeats; ++i) work();
    const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
    if (seconds > 5e-3) return seconds / static_cast<double>(repeats);
  }
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

/// One thing that is measured: all chunks, once.
struct Row {
  std::string name, isa;
  std::function<void()> encode, decode;
  size_t encoded_bytes = 0;
  std::vector<double> encode_s, decode_s, decode_two_s;
};

/// A codec's buffers for all chunks.
struct Workspace {
  std::vector<Bytes> encoded;
  std::vector<Bytes> decoded;
  std::vector<std::vector<std::span<uint8_t>>> planes;
};

Row CodecRow(std::shared_ptr<const Codec> codec, Isa isa, Level level,
             const std::vector<KvChunk>& chunks) {
  auto space = std::make_shared<Workspace>();
  for (const KvChunk& chunk : chunks) {
    space->encoded.push_back(Must(codec->Encode(chunk, {.level = level})));
    auto& bytes = space->decoded.emplace_back(chunk.bytes.size());
    auto& planes = space->planes.emplace_back();
    uint8_t* at = bytes.data();
    for (const auto& plane : codec->layout().planes) {
      planes.emplace_back(at, plane.row_bytes * chunk.n_tokens);
      at += planes.back().size();
    }
  }
  Row row{.name = std::string(LevelName(level)), .isa = std::string(IsaName(isa))};
  for (const Bytes& bytes : space->encoded) row.encoded_bytes += bytes.size();
  row.encode = [=, &chunks] {
    for (const KvChunk& chunk : chunks) Must(codec->Encode(chunk, {.level = level}));
  };
  row.decode = [=] {
    for (size_t i = 0; i < space->encoded.size(); ++i) {
      const absl::Status status = codec->Decode(space->encoded[i], space->planes[i]);
      if (!status.ok()) Must(absl::StatusOr<int>(status));
    }
  };
  return row;
}

std::vector<Row> PlainRows(const std::vector<KvChunk>& chunks) {
  auto copies = std::make_shared<std::vector<Bytes>>();
  for (const KvChunk& chunk : chunks) copies->emplace_back(chunk.bytes.size());
  Row copy{.name = "memcpy", .isa = "-"};
  copy.decode = copy.encode = [copies, &chunks] {
    for (size_t i = 0; i < chunks.size(); ++i) {
      std::memcpy((*copies)[i].data(), chunks[i].bytes.data(), chunks[i].bytes.size());
    }
  };
  auto packed = std::make_shared<std::vector<Bytes>>();
  Row zstd{.name = "zstd -1", .isa = "-"};
  zstd.encode = [packed, &chunks] {
    packed->clear();
    for (const KvChunk& chunk : chunks) {
      Bytes& out = packed->emplace_back(ZSTD_compressBound(chunk.bytes.size()));
      out.resize(ZSTD_compress(out.data(), out.size(), chunk.bytes.data(), chunk.bytes.size(), 1));
    }
  };
  zstd.decode = [packed, copies] {
    for (size_t i = 0; i < packed->size(); ++i) {
      ZSTD_decompress((*copies)[i].data(), (*copies)[i].size(), (*packed)[i].data(),
                      (*packed)[i].size());
    }
  };
  zstd.encode();
  for (const KvChunk& chunk : chunks) copy.encoded_bytes += chunk.bytes.size();
  for (const Bytes& bytes : *packed) zstd.encoded_bytes += bytes.size();
  return {copy, zstd};
}

/// Seconds for one pass by each of two threads at once.
double TwoThreads(const std::function<void()>& a, const std::function<void()>& b) {
  return Seconds([&] {
           constexpr int kPasses = 16;  // so that starting the threads does not count
           std::thread other([&] {
             for (int i = 0; i < kPasses; ++i) b();
           });
           for (int i = 0; i < kPasses; ++i) a();
           other.join();
         }) /
         16;
}

std::vector<KvChunk> RealChunks(std::shared_ptr<const workers::Model> model,
                                kvstore::KvLayout& layout, kvstore::KvGeometry& geometry) {
  auto replayer = Must(workers::Replayer::Create(
      model, ReadFile(absl::GetFlag(FLAGS_text)),
      {.context_tokens = absl::GetFlag(FLAGS_context), .continuation_tokens = 1, .windows = 1},
      {}));
  if (const auto status = replayer->LoadWindow(0); !status.ok()) Must(absl::StatusOr<int>(status));
  layout = replayer->layout();
  geometry = Must(GeometryOf(replayer->engine()));
  return replayer->chunks();
}

void Print(const std::vector<Row>& rows, size_t raw_bytes, nlohmann::json& json) {
  const double symbols = static_cast<double>(raw_bytes) / 2;
  const double copy_s = Median(rows[0].decode_s);
  std::printf("%zu KiB of f16 KV; medians of %zu rounds, one thread; G symbols/s (x2 = GB/s)\n",
              raw_bytes / 1024, rows[0].decode_s.size());
  std::printf("%-9s %-7s %8s %8s %8s %9s %10s\n", "level", "isa", "bits/el", "encode", "decode",
              "/memcpy", "two cores");
  for (const Row& row : rows) {
    const double bits = 8.0 * static_cast<double>(row.encoded_bytes) / symbols;
    const double encode = symbols / Median(row.encode_s) * 1e-9;
    const double decode = symbols / Median(row.decode_s) * 1e-9;
    double scaling = 0;
    if (!row.decode_two_s.empty()) {
      std::vector<double> ratios;
      for (size_t i = 0; i < row.decode_two_s.size(); ++i) {
        ratios.push_back(2 * row.decode_s[i] / row.decode_two_s[i]);
      }
      scaling = Median(std::move(ratios));
    }
    std::printf("%-9s %-7s %8.3f %8.3f %8.3f %8.1f%% %9.2fx\n", row.name.c_str(), row.isa.c_str(),
                bits, encode, decode, 100 * copy_s / Median(row.decode_s), scaling);
    json["rows"].push_back({{"level", row.name},
                            {"isa", row.isa},
                            {"bits_per_element", bits},
                            {"encode_symbols_per_s", encode * 1e9},
                            {"decode_symbols_per_s", decode * 1e9},
                            {"two_core_scaling", scaling}});
  }
}

int Main() {
  const auto model = Must(workers::Model::Load({.path = absl::GetFlag(FLAGS_model)}));
  kvstore::KvLayout layout;
  kvstore::KvGeometry geometry;
  std::vector<KvChunk> chunks;
  // In a thread of its own, because libllama may bind the calling thread to a core.
  std::thread([&] { chunks = RealChunks(model, layout, geometry); }).join();
  const std::string file = ReadFile(absl::GetFlag(FLAGS_profile));
  auto profile = std::make_shared<const kvstore::codec::Profile>(Must(
      kvstore::codec::ParseProfile({reinterpret_cast<const uint8_t*>(file.data()), file.size()})));
  size_t raw_bytes = 0;
  for (const KvChunk& chunk : chunks) raw_bytes += chunk.bytes.size();
  std::vector<Row> rows = PlainRows(chunks), twins = rows;
  for (const Isa isa : kvstore::codec::SupportedIsas()) {
    const auto codec = std::make_shared<const Codec>(
        Must(Codec::Create(layout, geometry, model->fingerprint(), profile, isa)));
    for (const Level level : kvstore::codec::kAllLevels) {
      if (!codec->CheckLevel(level).ok()) continue;
      rows.push_back(CodecRow(codec, isa, level, chunks));
      twins.push_back(CodecRow(codec, isa, level, chunks));
    }
  }
  const std::string best(IsaName(kvstore::codec::BestIsa()));
  for (uint32_t round = 0; round < absl::GetFlag(FLAGS_rounds); ++round) {
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].encode_s.push_back(Seconds(rows[i].encode));
      rows[i].decode_s.push_back(Seconds(rows[i].decode));
      if (rows[i].isa == best) {
        rows[i].decode_two_s.push_back(TwoThreads(rows[i].decode, twins[i].decode));
      }
    }
  }
  nlohmann::json json = {{"bench", "codec"}, {"raw_bytes", raw_bytes}};
  Print(rows, raw_bytes, json);
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    std::ofstream(path) << json.dump(2) << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return tandem::bench::Main();
}
