// `./dev bench dispatch`: how long a router takes to choose the pair of workers for a request, the
// look-up of its cached prefix included, among a thousand workers that hold a million chunks and
// have measured every link between them.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "scheduler/cluster_view.h"

ABSL_FLAG(uint32_t, workers, 1000, "Workers: four in ten prefill, four decode, two do both");
ABSL_FLAG(uint32_t, chunks, 1000000, "Chunks that the directory knows");
ABSL_FLAG(uint32_t, choices, 50000, "Choices of each kind");
ABSL_FLAG(std::string, json, "", "Write the figures there");

namespace tandem::bench {
namespace {

using kvstore::ChunkId;
using scheduler::ChunkDirectory;
using scheduler::ClusterView;
/// CPU time of this thread: what others do on the machine does not count.
struct Clock {
  static double now() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) * 1e-3;
  }
};

constexpr uint32_t kChunkTokens = 256;
constexpr uint32_t kPromptChunks = 8;
/// Chunks of a conversation.
constexpr uint32_t kConversation = 32;
/// Conversations that every prefilling worker has: one in so many.
constexpr uint32_t kPopular = 1000;

double MicrosecondsSince(double began) { return Clock::now() - began; }

class Cluster {
 public:
  Cluster() : ids_(absl::GetFlag(FLAGS_chunks)), held_(absl::GetFlag(FLAGS_workers)) {
    for (ChunkId& id : ids_) {
      for (size_t i = 0; i < id.bytes.size(); i += sizeof(uint64_t)) {
        const uint64_t word = random_();
        std::memcpy(id.bytes.data() + i, &word, sizeof word);
      }
    }
    for (uint32_t w = 0; w < held_.size(); ++w) view_.Add(Info(w), now_);
    PlaceChunks();
    for (uint32_t w = 0; w < held_.size(); ++w) {
      TellChunks(w);
      view_.Report(Id(w), Load(w, /*links=*/true), now_);
    }
  }

  /// Microseconds of each choice, for prompts whose chunks `prompt` gives. Assigned work is
  /// released some choices later, and reports come in between, as they do.
  std::vector<double> Choose(const std::function<std::span<const ChunkId>()>& prompt) {
    std::vector<double> times(absl::GetFlag(FLAGS_choices));
    std::vector<scheduler::AssignmentId> running(2000);
    for (size_t i = 0; i < times.size(); ++i) {
      now_ += absl::Milliseconds(1);
      // Every worker reports once in a second.
      const auto w = static_cast<uint32_t>(i % held_.size());
      view_.Report(Id(w), Load(w, /*links=*/false), now_);
      scheduler::AssignmentId& old = running[i % running.size()];
      view_.ReleasePrefill(old);
      view_.ReleaseDecode(old);
      const scheduler::Placement what = {.prompt_tokens = 2000 + static_cast<uint32_t>(i % 256),
                                         .max_tokens = 400,
                                         .chunk_ids = prompt()};
      const auto began = Clock::now();
      const auto pair = view_.Assign(what, now_);
      times[i] = MicrosecondsSince(began);
      if (!pair.ok()) std::abort();
      old = pair->assignment;
    }
    for (const scheduler::AssignmentId id : running) {
      view_.ReleasePrefill(id);
      view_.ReleaseDecode(id);
    }
    if (view_.assignments() != 0) std::abort();
    return times;
  }

  std::vector<double> TakeReports() {
    std::vector<double> times(absl::GetFlag(FLAGS_choices) / 10);
    for (size_t i = 0; i < times.size(); ++i) {
      const auto w = static_cast<uint32_t>(i % held_.size());
      const v1::WorkerLoad load = Load(w, /*links=*/false);
      const auto began = Clock::now();
      view_.Report(Id(w), load, now_);
      times[i] = MicrosecondsSince(began);
    }
    return times;
  }

  std::span<const ChunkId> Conversation() {
    const size_t n = ids_.size() / kConversation;
    return {ids_.data() + random_() % n * kConversation, kPromptChunks};
  }
  std::span<const ChunkId> PopularOne() {
    const size_t n = ids_.size() / kConversation / kPopular;
    return {ids_.data() + random_() % std::max<size_t>(1, n) * kPopular * kConversation,
            kPromptChunks};
  }
  /// What is in a directory of a million chunks, most of which one to three workers have.
  std::span<const ChunkId> AnyPrompt() {
    return random_() % 10 == 0 ? PopularOne() : Conversation();
  }

  size_t chunks() const { return directory_.size(); }

 private:
  static std::string Id(uint32_t w) { return "worker-" + std::to_string(w) + "-0123456789abcdef"; }
  static std::string Address(uint32_t w) {
    return "10.0." + std::to_string(w / 250) + "." + std::to_string(w % 250) + ":8471";
  }
  static bool Prefills(uint32_t w) { return w % 10 < 4 || w % 10 >= 8; }

  static v1::WorkerInfo Info(uint32_t w) {
    v1::WorkerInfo info;
    info.set_worker_id(Id(w));
    info.set_name("node-" + std::to_string(w));
    info.set_grpc_address(Address(w));
    info.set_data_address(Address(w));
    info.set_phase(w % 10 < 4   ? v1::PHASE_PREFILL
                   : w % 10 < 8 ? v1::PHASE_DECODE
                                : v1::PHASE_MIXED);
    info.set_prefills_too(true);
    info.set_max_sequences(64);
    info.set_kv_capacity_tokens(131072);
    info.set_kv_bytes_per_token(20000);
    info.set_chunk_tokens(kChunkTokens);
    info.set_kv_namespace(std::string(32, 'n'));
    return info;
  }

  v1::WorkerLoad Load(uint32_t w, bool links) {
    v1::WorkerLoad load;
    load.mutable_prefill()->set_tokens_to_compute(random_() % 2000);
    v1::PhaseLoad& decode = *load.mutable_decode();
    decode.set_running(random_() % 40);
    decode.set_kv_used_tokens(decode.running() * 1000);
    decode.set_kv_expected_tokens(decode.running() * 1300);
    v1::LatencyModel& latency = *load.mutable_latency();
    latency.set_prefill_base_s(4e-3);
    latency.set_prefill_per_token_s(5e-5);
    latency.set_prefill_per_position_s(1e-9);
    latency.set_decode_base_s(8e-3);
    latency.set_decode_per_sequence_s(2e-4);
    latency.set_decode_per_context_token_s(1e-8);
    latency.set_saturation_tokens(768);
    latency.set_prefill_samples(1000);
    latency.set_decode_samples(1000);
    for (uint32_t from = 0; links && from < held_.size(); ++from) {
      v1::LinkEstimate& link = *load.add_links();
      link.set_data_address(Address(from));
      link.set_bytes_per_s(from / 20 == w / 20 ? 3e9 : 1e9);
      link.set_rtt_s(2e-4);
    }
    return load;
  }

  void PlaceChunks() {
    std::vector<uint32_t> prefilling, holders;
    for (uint32_t w = 0; w < held_.size(); ++w) {
      if (Prefills(w)) prefilling.push_back(w);
    }
    for (size_t i = 0; i < ids_.size(); ++i) {
      if (i % kConversation == 0) {
        const bool popular = i / kConversation % kPopular == 0;
        const size_t n = popular ? prefilling.size() : 1 + random_() % 3;
        holders.clear();
        const size_t first = random_();
        for (size_t k = 0; k < n; ++k) {
          holders.push_back(prefilling[(first + k) % prefilling.size()]);
        }
      }
      for (const uint32_t w : holders) held_[w].push_back(i);
    }
  }

  void TellChunks(uint32_t w) {
    v1::ChunkEvents events;
    events.set_snapshot(true);
    events.set_first_sequence(1);
    for (const size_t chunk : held_[w]) {
      events.mutable_entries()->append(reinterpret_cast<const char*>(ids_[chunk].bytes.data()),
                                       sizeof(uint64_t));
      events.mutable_entries()->push_back(1);
    }
    if (!directory_.Apply(Id(w), events)) std::abort();
  }

  std::mt19937_64 random_{1};
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  std::vector<ChunkId> ids_;
  std::vector<std::vector<size_t>> held_;  // by worker
  ChunkDirectory directory_;
  ClusterView view_{{.seed = 1}, &directory_};
};

int Main() {
  Cluster cluster;
  std::printf("%u workers, %zu chunks; a choice includes the look-up of its %u chunks; CPU time\n",
              absl::GetFlag(FLAGS_workers), cluster.chunks(), kPromptChunks);
  std::printf("%-40s %9s %9s %9s\n", "", "p50 µs", "p99 µs", "worst µs");
  nlohmann::json json = {{"bench", "dispatch"},
                         {"clock", "thread CPU time"},
                         {"workers", absl::GetFlag(FLAGS_workers)},
                         {"chunks", cluster.chunks()},
                         {"rows", nlohmann::json::array()}};
  auto row = [&](const char* name, std::vector<double> times) {
    std::sort(times.begin(), times.end());
    const double p50 = times[times.size() / 2], p99 = times[times.size() * 99 / 100];
    std::printf("%-40s %9.2f %9.2f %9.1f\n", name, p50, p99, times.back());
    json["rows"].push_back(
        {{"name", name}, {"p50_us", p50}, {"p99_us", p99}, {"worst_us", times.back()}});
  };
  row("choose, nothing cached", cluster.Choose([] { return std::span<const ChunkId>(); }));
  row("choose, cached on one to three workers",
      cluster.Choose([&] { return cluster.Conversation(); }));
  row("choose, cached on all that prefill", cluster.Choose([&] { return cluster.PopularOne(); }));
  row("choose, a mixture (one in ten popular)",
      cluster.Choose([&] { return cluster.AnyPrompt(); }));
  row("take a worker's report", cluster.TakeReports());
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
