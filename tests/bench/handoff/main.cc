// `./dev bench handoff`: how fast KV moves from a HandoffServer to a HandoffClient over loopback,
// next to a bare socket and to memcpy, all in the same run and taking turns.
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <future>
#include <numeric>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "kvstore/transfer/transfer.h"
#include "tests/bench/handoff/bare_socket.h"
#include "tests/support/io_thread.h"

ABSL_FLAG(uint32_t, rounds, 15, "Rounds, of which the medians are shown");
ABSL_FLAG(std::string, json, "", "Write the figures there");

namespace tandem::bench {
namespace {

using kvstore::HandoffClient;
using kvstore::HandoffServer;
using kvstore::KvChunk;

constexpr size_t kMiB = size_t{1} << 20;
/// 256 tokens of a model with 4, 16 and 64 KiB of KV per token.
constexpr size_t kChunkMiB[] = {1, 4, 16};
constexpr size_t kContextMiB[] = {1, 16, 256};
constexpr uint32_t kTokensPerChunk = 256;

struct Cost {
  double wall_s = 0;
  double cpu_s = 0;
};

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

template <typename F>
Cost Measure(F&& work) {
  const absl::Time began = absl::Now();
  const double cpu = CpuSeconds();
  work();
  return {absl::ToDoubleSeconds(absl::Now() - began), CpuSeconds() - cpu};
}

/// Takes chunks into memory allocated beforehand.
class FixedSink final : public kvstore::KvSink {
 public:
  explicit FixedSink(std::span<uint8_t> memory) : memory_(memory) {}
  absl::StatusOr<std::vector<std::span<uint8_t>>> Prepare(uint32_t, uint32_t,
                                                          uint64_t body_bytes) override {
    if (body_bytes > memory_.size()) return absl::InvalidArgumentError("too much");
    std::vector<std::span<uint8_t>> spans(1, memory_.first(body_bytes));
    memory_ = memory_.subspan(body_bytes);
    return spans;
  }
  void Commit() override {}

 private:
  std::span<uint8_t> memory_;
};

/// The real two ends, and publications to pull.
class Handoff {
 public:
  Handoff(boost::asio::io_context& server, boost::asio::io_context& client)
      : server_(*HandoffServer::Start(server, {.listen = "127.0.0.1:0"})),
        client_(HandoffClient::Create(client, {})) {}

  /// Publishes a whole context, checksums included; what the engine's thread does.
  void Offer(size_t context_bytes, size_t chunk_bytes) {
    std::vector<KvChunk> chunks;
    uint32_t position = 0;
    for (size_t at = 0; at < context_bytes; at += chunk_bytes, position += kTokensPerChunk) {
      const size_t n = std::min(chunk_bytes, context_bytes - at);
      chunks.push_back({.first_position = position, .n_tokens = kTokensPerChunk});
      chunks.back().bytes.assign(n, static_cast<uint8_t>(position));
    }
    std::string id = std::to_string(next_id_++);
    id.resize(16);
    auto publication =
        *server_->Publish(id, context_, {}, [this](absl::Status, auto) { released_.set_value(); });
    append_ = Measure([&] {
      for (KvChunk& chunk : chunks) publication->Append(std::move(chunk));
    });
    publication->Finish({.n_tokens = position, .first_token = 1});
    id_ = id;
  }

  void Fetch(std::span<uint8_t> to) {
    FixedSink sink(to);
    std::promise<absl::Status> done;
    client_->Pull(context_, "127.0.0.1:" + std::to_string(server_->port()), id_, &sink,
                  [&](absl::StatusOr<HandoffClient::Result> r) { done.set_value(r.status()); });
    if (auto status = done.get_future().get(); !status.ok()) {
      std::fprintf(stderr, "handoff failed: %s\n", status.ToString().c_str());
      std::exit(1);
    }
  }
  /// Waits until the server has dropped what was fetched.
  void AwaitRelease() {
    released_.get_future().get();
    released_ = {};
  }
  const Cost& append() const { return append_; }

 private:
  std::unique_ptr<HandoffServer> server_;
  std::unique_ptr<HandoffClient> client_;
  const RequestContextPtr context_ =
      std::make_shared<RequestContext>("bench", "bench", 0, absl::InfiniteFuture());
  uint64_t next_id_ = 0;
  std::string id_;
  Cost append_;
  std::promise<void> released_;
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

struct Row {
  size_t context_mib = 0, chunk_mib = 0;
  std::vector<Cost> memcpy, bare, handoff, append;

  /// Median GB/s over the rounds; by CPU time instead of wall time when `cpu`.
  double Rate(const std::vector<Cost>& costs, bool cpu = false) const {
    std::vector<double> rates;
    for (const Cost& cost : costs) {
      rates.push_back(context_mib * kMiB * 1e-9 / (cpu ? cost.cpu_s : cost.wall_s));
    }
    return Median(std::move(rates));
  }

  /// Median of the rounds' own shares: neighbours on the machine slow both of a round's runs.
  double Share(const std::vector<Cost>& of, bool cpu = false) const {
    std::vector<double> shares;
    for (size_t i = 0; i < of.size(); ++i) {
      shares.push_back(cpu ? of[i].cpu_s / handoff[i].cpu_s : of[i].wall_s / handoff[i].wall_s);
    }
    return Median(std::move(shares));
  }
};

/// One round of one row; small contexts are moved often enough for the clock.
void RunRound(Row& row, Handoff& handoff, BareSocket& bare, std::span<const uint8_t> from,
              std::span<uint8_t> to) {
  const size_t bytes = row.context_mib * kMiB, chunk_bytes = row.chunk_mib * kMiB;
  const size_t repeats = std::max<size_t>(1, 128 / row.context_mib);
  from = from.first(bytes);
  to = to.first(bytes);
  Cost copy, plain, moved, append;
  const auto add = [&](Cost& sum, const Cost& cost) {
    sum.wall_s += cost.wall_s / repeats;
    sum.cpu_s += cost.cpu_s / repeats;
  };
  for (size_t i = 0; i < repeats; ++i) {
    add(copy, Measure([&] { std::memcpy(to.data(), from.data(), bytes); }));
    const auto fetch_bare = [&] {
      add(plain, Measure([&] { bare.Fetch(from, to, chunk_bytes); }));
    };
    const bool bare_first = (row.bare.size() + i) % 2 == 0;
    if (bare_first) fetch_bare();
    handoff.Offer(bytes, chunk_bytes);
    add(append, handoff.append());
    add(moved, Measure([&] { handoff.Fetch(to); }));
    handoff.AwaitRelease();
    if (!bare_first) fetch_bare();
  }
  row.memcpy.push_back(copy);
  row.bare.push_back(plain);
  row.handoff.push_back(moved);
  row.append.push_back(append);
}

void Print(const std::vector<Row>& rows, size_t rounds) {
  std::printf("KV handoff over loopback: medians of %zu rounds, GB/s (1 GB = 1e9 bytes)\n", rounds);
  std::printf("%8s %6s %8s %8s %8s %8s %8s | %18s %6s\n", "context", "chunk", "memcpy", "bare",
              "handoff", "/bare", "/memcpy", "per CPU second:", "/bare");
  for (const Row& row : rows) {
    std::printf("%4zu MiB %2zu MiB %8.2f %8.2f %8.2f %7.1f%% %7.1f%% | %8.2f %9.2f %5.1f%%\n",
                row.context_mib, row.chunk_mib, row.Rate(row.memcpy), row.Rate(row.bare),
                row.Rate(row.handoff), 100 * row.Share(row.bare), 100 * row.Share(row.memcpy),
                row.Rate(row.bare, true), row.Rate(row.handoff, true),
                100 * row.Share(row.bare, true));
  }
  std::printf(
      "bare: an Asio socket, the same bytes and threads, buffers allocated beforehand.\n"
      "Append (checksum, in the engine's thread, before the pull): %.1f GB/s\n",
      rows.back().Rate(rows.back().append));
}

void WriteJson(const std::vector<Row>& rows, size_t rounds, const std::string& path) {
  std::ofstream out(path);
  out << "{\"rounds\": " << rounds << ", \"rows\": [";
  for (const Row& row : rows) {
    out << (&row == rows.data() ? "" : ",") << "\n  {\"context_mib\": " << row.context_mib
        << ", \"chunk_mib\": " << row.chunk_mib << ", \"memcpy_gb_per_s\": " << row.Rate(row.memcpy)
        << ", \"bare_gb_per_s\": " << row.Rate(row.bare)
        << ", \"handoff_gb_per_s\": " << row.Rate(row.handoff)
        << ", \"append_gb_per_s\": " << row.Rate(row.append)
        << ", \"handoff_share_of_bare\": " << row.Share(row.bare)
        << ", \"handoff_share_of_memcpy\": " << row.Share(row.memcpy)
        << ", \"bare_gb_per_cpu_s\": " << row.Rate(row.bare, true)
        << ", \"handoff_gb_per_cpu_s\": " << row.Rate(row.handoff, true) << "}";
  }
  out << "\n]}\n";
}

int Main() {
  const std::string json = absl::GetFlag(FLAGS_json);
  const size_t rounds = std::max(1u, absl::GetFlag(FLAGS_rounds));
  std::vector<Row> rows;
  for (size_t context : kContextMiB) {
    for (size_t chunk : kChunkMiB) {
      if (chunk <= context) rows.push_back({.context_mib = context, .chunk_mib = chunk});
    }
  }
  const std::vector<uint8_t> from(kContextMiB[std::size(kContextMiB) - 1] * kMiB, 1);
  std::vector<uint8_t> to(from.size(), 2);
  testing_support::IoThread server_thread(0u), client_thread(1u);
  BareSocket bare(server_thread.io(), client_thread.io());
  Handoff handoff(server_thread.io(), client_thread.io());
  for (Row& row : rows) {
    for (size_t round = 0; round < rounds; ++round) RunRound(row, handoff, bare, from, to);
  }
  Print(rows, rounds);
  if (!json.empty()) WriteJson(rows, rounds, json);
  return 0;
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return tandem::bench::Main();
}
