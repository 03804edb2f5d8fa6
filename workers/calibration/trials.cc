#include "workers/calibration/trials.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kvstore/codec/byte_io.h"

namespace tandem::workers {
namespace {

using kvstore::KvChunk;
using kvstore::codec::ByteReader;
using kvstore::codec::ByteWriter;
using kvstore::codec::Codec;
using kvstore::codec::Level;
using kvstore::codec::Profile;

/// A codec's streams in as many threads as the engine has; it waits meanwhile.
kvstore::codec::ParallelFor InThreads(uint32_t n_threads) {
  return [n_threads](size_t n, const std::function<void(size_t)>& body) {
    std::atomic<size_t> next = 0;
    const auto work = [&] {
      for (size_t i = next++; i < n; i = next++) body(i);
    };
    std::vector<std::jthread> others;
    for (size_t t = 1; t < std::min<size_t>(n_threads, n); ++t) others.emplace_back(work);
    work();
  };
}

std::vector<Level> LevelsOf(const Profile& profile) {
  std::vector<Level> levels;
  for (const Level level : kvstore::codec::kAllLevels) {
    if (level != Level::kLossless && profile.levels[LossyIndex(level)]) levels.push_back(level);
  }
  return levels;
}

/// `chunk` with the planes of `group` taken from `other`.
KvChunk Mix(const kvstore::KvLayout& layout, const KvChunk& chunk, const KvChunk& other,
            const std::vector<size_t>& group) {
  KvChunk mixed = chunk;
  const auto from = PlanesOf(layout, other);
  const auto to = PlanesOf(layout, mixed);
  for (const size_t p : group) std::copy(from[p].begin(), from[p].end(), to[p].begin());
  return mixed;
}

}  // namespace

uint64_t ElementsPerToken(const kvstore::KvLayout& layout) {
  uint64_t elements = 0;
  for (const auto& plane : layout.planes) {
    elements += plane.row_bytes / (plane.type == "f32" ? 4 : 2);
  }
  return elements;
}

absl::Status Trials::Meter(std::string_view stage, uint64_t units) const {
  return meter_(stage, units) ? absl::OkStatus() : absl::CancelledError("interrupted");
}

absl::StatusOr<Codec> Trials::NewCodec(std::shared_ptr<const Profile> profile) const {
  const std::string& fingerprint = replayer_.engine().model().fingerprint();
  return Codec::Create(replayer_.layout(), geometry_, fingerprint, std::move(profile));
}

absl::StatusOr<Trials::Outcome> Trials::TryLevel(const Codec& codec, Level level) {
  Outcome outcome;
  const auto encoded_elements = static_cast<double>(ElementsPerToken(codec.layout()));
  const auto parallel = InThreads(replayer_.engine().options().threads);
  const auto round_trip = [&](const KvChunk& chunk) -> absl::StatusOr<KvChunk> {
    ASSIGN_OR_RETURN(const auto bytes, codec.Encode(chunk, {.level = level}, parallel));
    outcome.encoded_bits += 8.0 * static_cast<double>(bytes.size());
    outcome.elements += encoded_elements * chunk.n_tokens;
    return codec.Decode(bytes, parallel);
  };
  ASSIGN_OR_RETURN(outcome.score, replayer_.Score(round_trip));
  return outcome;
}

absl::StatusOr<std::vector<Trials::Outcome>> Trials::TryWindow(std::string_view stage,
                                                               uint32_t window,
                                                               std::span<const Codec> codecs) {
  const std::string name = absl::StrCat(std::string(stage), "/", window);
  const uint32_t n_tokens = replayer_.options().continuation_tokens;
  std::vector<Outcome> outcomes;
  if (const auto* known = journal_.Find(name)) {
    for (ByteReader in(*known); !in.rest().empty();) {
      Outcome& outcome = outcomes.emplace_back();
      for (double* value :
           {&outcome.encoded_bits, &outcome.elements, &outcome.score.kl,
            &outcome.score.log_likelihood, &outcome.score.unchanged_log_likelihood}) {
        *value = in.Read<double>();
      }
      outcome.score.top1_agreements = in.Read<uint32_t>();
      // Only their number counts from here on.
      outcome.score.log_likelihoods.resize(n_tokens);
    }
    RETURN_IF_ERROR(Meter(stage, 1 + outcomes.size()));
    return outcomes;
  }
  RETURN_IF_ERROR(Meter(stage, 1));
  RETURN_IF_ERROR(replayer_.LoadWindow(window));
  std::vector<uint8_t> record;
  ByteWriter out(record);
  for (const Codec& codec : codecs) {
    for (const Level level : LevelsOf(*codec.profile())) {
      RETURN_IF_ERROR(Meter(stage, 1));
      ASSIGN_OR_RETURN(const Outcome outcome, TryLevel(codec, level));
      for (const double value :
           {outcome.encoded_bits, outcome.elements, outcome.score.kl, outcome.score.log_likelihood,
            outcome.score.unchanged_log_likelihood}) {
        out.Write(value);
      }
      out.Write(outcome.score.top1_agreements);
      outcomes.push_back(outcome);
    }
  }
  RETURN_IF_ERROR(journal_.Put(name, std::move(record)));
  return outcomes;
}

absl::StatusOr<std::vector<TrialResult>> Trials::Run(
    std::string_view stage, std::span<const uint32_t> windows,
    std::span<const std::shared_ptr<const Profile>> profiles) {
  std::vector<Codec> codecs;
  for (const auto& profile : profiles) {
    ASSIGN_OR_RETURN(Codec codec, NewCodec(profile));
    codecs.push_back(std::move(codec));
  }
  std::vector<TrialResult> results;
  std::vector<std::vector<WindowScore>> scores;
  std::vector<double> elements;
  for (const uint32_t window : windows) {
    ASSIGN_OR_RETURN(const auto outcomes, TryWindow(stage, window, codecs));
    results.resize(outcomes.size());
    scores.resize(outcomes.size());
    elements.resize(outcomes.size());
    for (size_t i = 0; i < outcomes.size(); ++i) {
      results[i].bits_per_element += outcomes[i].encoded_bits;
      elements[i] += outcomes[i].elements;
      scores[i].push_back(outcomes[i].score);
    }
  }
  for (size_t i = 0; i < results.size(); ++i) {
    results[i].bits_per_element /= elements[i];
    results[i].summary = Summarise(scores[i]);
  }
  return results;
}

absl::StatusOr<std::vector<double>> Trials::TryGroups(std::string_view stage, uint32_t window,
                                                      const Codec& codec,
                                                      std::span<const std::vector<size_t>> groups) {
  const std::string name = absl::StrCat(std::string(stage), "/", window);
  if (const auto* known = journal_.Find(name)) {
    RETURN_IF_ERROR(Meter(stage, 1 + known->size() / sizeof(double)));
    return ByteReader(*known).ReadMany<double>(known->size() / sizeof(double));
  }
  RETURN_IF_ERROR(Meter(stage, 1));
  RETURN_IF_ERROR(replayer_.LoadWindow(window));
  const auto parallel = InThreads(replayer_.engine().options().threads);
  std::vector<double> kls;
  for (const Level level : LevelsOf(*codec.profile())) {
    std::vector<KvChunk> coded;
    for (const KvChunk& chunk : replayer_.chunks()) {
      ASSIGN_OR_RETURN(const auto bytes, codec.Encode(chunk, {.level = level}, parallel));
      ASSIGN_OR_RETURN(coded.emplace_back(), codec.Decode(bytes, parallel));
    }
    for (const std::vector<size_t>& group : groups) {
      RETURN_IF_ERROR(Meter(stage, 1));
      ASSIGN_OR_RETURN(const WindowScore score,
                       replayer_.Score([&](const KvChunk& chunk) -> absl::StatusOr<KvChunk> {
                         const size_t index =
                             static_cast<size_t>(&chunk - replayer_.chunks().data());
                         return Mix(codec.layout(), chunk, coded[index], group);
                       }));
      kls.push_back(score.kl / replayer_.options().continuation_tokens);
    }
  }
  std::vector<uint8_t> record;
  ByteWriter(record).WriteMany(std::span<const double>(kls));
  RETURN_IF_ERROR(journal_.Put(name, std::move(record)));
  return kls;
}

absl::StatusOr<std::vector<std::vector<double>>> Trials::RunAlone(
    std::string_view stage, std::span<const uint32_t> windows,
    std::shared_ptr<const Profile> profile, std::span<const std::vector<size_t>> groups) {
  ASSIGN_OR_RETURN(const Codec codec, NewCodec(profile));
  std::vector<std::vector<double>> mean(LevelsOf(*profile).size(),
                                        std::vector<double>(groups.size(), 0));
  for (const uint32_t window : windows) {
    ASSIGN_OR_RETURN(const auto kls, TryGroups(stage, window, codec, groups));
    for (size_t i = 0; i < kls.size(); ++i) {
      mean[i / groups.size()][i % groups.size()] += kls[i] / static_cast<double>(windows.size());
    }
  }
  return mean;
}

}  // namespace tandem::workers
