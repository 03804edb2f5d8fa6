// `./dev bench directory`: how long a router takes to find a prompt's cached prefix among a million
// chunks on twenty nodes, alone and while the nodes tell of changes; and what knowing them costs.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "scheduler/chunk_directory.h"

ABSL_FLAG(uint32_t, chunks, 1000000, "Chunks that the directory knows");
ABSL_FLAG(uint32_t, nodes, 20, "Nodes that hold them");
ABSL_FLAG(uint32_t, finds, 100000, "Searches of each kind");
ABSL_FLAG(std::string, json, "", "Write the figures there");

namespace tandem::bench {
namespace {

using kvstore::ChunkId;
using kvstore::Level;
using scheduler::ChunkDirectory;

constexpr uint32_t kChunkTokens = 256;
constexpr uint32_t kPromptTokens = 2000;
constexpr size_t kPromptChunks[] = {8, 32};
/// Entries of a piece of a snapshot, as workers send them; of a report's changes.
constexpr size_t kPiece = 65536, kReport = 64;

using Clock = std::chrono::steady_clock;

double MicrosecondsSince(Clock::time_point began) {
  return std::chrono::duration<double, std::micro>(Clock::now() - began).count();
}

double Quantile(std::vector<double>& sorted, double q) {
  return sorted[static_cast<size_t>(q * static_cast<double>(sorted.size() - 1))];
}

struct Row {
  std::string name;
  double p50_us = 0, p99_us = 0, worst_us = 0;
};

Row MakeRow(std::string name, std::vector<double> microseconds) {
  std::sort(microseconds.begin(), microseconds.end());
  return {std::move(name), Quantile(microseconds, 0.5), Quantile(microseconds, 0.99),
          microseconds.back()};
}

/// A million chunks of conversations, and who holds what.
class Cluster {
 public:
  Cluster() : ids_(absl::GetFlag(FLAGS_chunks)), held_(absl::GetFlag(FLAGS_nodes)) {
    for (ChunkId& id : ids_) {
      for (size_t i = 0; i < id.bytes.size(); i += sizeof(uint64_t)) {
        const uint64_t word = random_();
        std::memcpy(id.bytes.data() + i, &word, sizeof word);
      }
    }
    // A chunk in 32 begins a conversation, and one in 1,000 of these is a system prompt that every
    // node has; the other conversations are on one to three nodes each.
    std::vector<size_t> holders;
    for (size_t i = 0; i < ids_.size(); ++i) {
      if (i % 32 == 0) {
        const size_t n = random_() % 1000 == 0 ? held_.size() : 1 + random_() % 3;
        holders.clear();
        const size_t first = random_();
        for (size_t k = 0; k < n; ++k) holders.push_back((first + k) % held_.size());
      }
      for (const size_t node : holders) held_[node].push_back(i);
    }
  }

  /// Entries per second, all nodes' snapshots after one another.
  double TellAll(ChunkDirectory& directory) {
    const auto began = Clock::now();
    for (size_t node = 0; node < held_.size(); ++node) {
      next_.push_back(1 + held_[node].size());
      for (size_t at = 0; at == 0 || at < held_[node].size(); at += kPiece) {
        const size_t end = std::min(at + kPiece, held_[node].size());
        v1::ChunkEvents events;
        events.set_snapshot(at == 0);
        events.set_first_sequence(1 + at);
        for (size_t i = at; i < end; ++i) Append(events, held_[node][i], 1);
        if (!directory.Apply(Name(node), events)) std::abort();
      }
    }
    return static_cast<double>(entries()) / MicrosecondsSince(began) * 1e6;
  }

  /// Nodes drop chunks and get them back, report by report, until `done`. Entries per second.
  double TellChanges(ChunkDirectory& directory, const std::function<bool()>& done) {
    std::mt19937_64 random(5);
    size_t n = 0;
    const auto began = Clock::now();
    while (!done()) {
      const size_t node = random() % held_.size();
      const size_t at = random() % (held_[node].size() - kReport / 2);
      v1::ChunkEvents events;
      events.set_first_sequence(next_[node]);
      for (const uint8_t levels : {0, 1}) {
        for (size_t i = 0; i < kReport / 2; ++i) Append(events, held_[node][at + i], levels);
      }
      if (!directory.Apply(Name(node), events)) std::abort();
      next_[node] += kReport;
      n += kReport;
    }
    return static_cast<double>(n) / MicrosecondsSince(began) * 1e6;
  }

  /// Microseconds of each search for a prompt of so many chunks, at random places.
  std::vector<double> Search(const ChunkDirectory& directory, size_t n_chunks, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<double> times(absl::GetFlag(FLAGS_finds));
    for (double& time : times) {
      const size_t at = random() % (ids_.size() / 32) * 32;
      const std::span<const ChunkId> prompt(ids_.data() + at, n_chunks);
      const auto began = Clock::now();
      found_ += directory.Find(prompt, Level::kQ2).n_chunks;
      time = MicrosecondsSince(began);
    }
    return times;
  }

  std::string Name(size_t node) const {
    return "prefill-" + std::to_string(node) + "-0123456789abcdef";
  }
  size_t entries() const {
    size_t n = 0;
    for (const auto& held : held_) n += held.size();
    return n;
  }
  uint64_t found() const { return found_; }

 private:
  void Append(v1::ChunkEvents& events, size_t chunk, uint8_t levels) const {
    events.mutable_entries()->append(reinterpret_cast<const char*>(ids_[chunk].bytes.data()),
                                     sizeof(uint64_t));
    events.mutable_entries()->push_back(static_cast<char>(levels));
  }

  std::mt19937_64 random_{1};
  std::vector<ChunkId> ids_;
  std::vector<std::vector<size_t>> held_;  // by node
  std::vector<uint64_t> next_;             // by node: the sequence number of what it tells next
  std::atomic<uint64_t> found_{0};
};

/// Ids of a prompt of 2,000 tokens, as the router computes them before each search.
std::vector<double> NamePrompts() {
  std::vector<int32_t> tokens(kPromptTokens);
  std::vector<double> times(absl::GetFlag(FLAGS_finds) / 10);
  const std::string kv_namespace(32, 'n');
  for (double& time : times) {
    ++tokens[0];
    const auto began = Clock::now();
    if (kvstore::ChunkIds(kv_namespace, "default", tokens, kChunkTokens).empty()) std::abort();
    time = MicrosecondsSince(began);
  }
  return times;
}

int Main() {
  Cluster cluster;
  ChunkDirectory directory;
  const double snapshot_rate = cluster.TellAll(directory);
  std::vector<Row> rows;
  for (const size_t n : kPromptChunks) {
    rows.push_back(
        MakeRow("find " + std::to_string(n) + " chunks", cluster.Search(directory, n, n)));
  }
  double change_rate = 0;
  for (const size_t n : kPromptChunks) {
    std::atomic<bool> done = false;
    std::thread writer(
        [&] { change_rate = cluster.TellChanges(directory, [&] { return done.load(); }); });
    rows.push_back(MakeRow("find " + std::to_string(n) + " chunks, beside changes",
                           cluster.Search(directory, n, n + 1)));
    done = true;
    writer.join();
  }
  rows.push_back(MakeRow("ids of 2,000 tokens", NamePrompts()));
  const size_t n_known = directory.size();
  const double bytes_per_chunk = static_cast<double>(directory.MemoryBytes()) / directory.size();
  const auto began = Clock::now();
  directory.Forget(cluster.Name(0));
  const double forget_ms = MicrosecondsSince(began) * 1e-3;

  std::printf("%zu chunks, %zu entries of %u nodes\n", n_known, cluster.entries(),
              absl::GetFlag(FLAGS_nodes));
  std::printf("%-32s %9s %9s %9s\n", "", "p50 µs", "p99 µs", "worst µs");
  nlohmann::json json = {
      {"bench", "directory"}, {"chunks", n_known}, {"rows", nlohmann::json::array()}};
  for (const Row& row : rows) {
    std::printf("%-32s %9.2f %9.2f %9.1f\n", row.name.c_str(), row.p50_us, row.p99_us,
                row.worst_us);
    json["rows"].push_back({{"name", row.name},
                            {"p50_us", row.p50_us},
                            {"p99_us", row.p99_us},
                            {"worst_us", row.worst_us}});
  }
  std::printf(
      "%.2f M entries/s of snapshots, %.2f M of changes; %.1f bytes a chunk; "
      "a node is forgotten in %.1f ms\n",
      snapshot_rate * 1e-6, change_rate * 1e-6, bytes_per_chunk, forget_ms);
  json["snapshot_entries_per_s"] = snapshot_rate;
  json["change_entries_per_s"] = change_rate;
  json["bytes_per_chunk"] = bytes_per_chunk;
  json["forget_ms"] = forget_ms;
  json["chunks_found"] = cluster.found();
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
