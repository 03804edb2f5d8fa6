#include "workers/kv_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <optional>

#include "kvstore/codec/level.h"

namespace tandem::workers {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Labels;

Labels With(Labels labels, const std::string& name, std::string_view value) {
  labels[name] = std::string(value);
  return labels;
}

}  // namespace

struct KvMetrics::Families {
  Family<Counter>& CounterFamily(const char* name, const char* help) {
    return BuildCounter().Name(name).Help(help).Register(*registry);
  }
  Family<Gauge>& GaugeFamily(const char* name, const char* help) {
    return BuildGauge().Name(name).Help(help).Register(*registry);
  }
  Families(std::shared_ptr<prometheus::Registry> shared, Labels all)
      : registry(std::move(shared)), labels(std::move(all)) {
    AddStore();
  }
  void AddStore();
  void AddTier(size_t i);

  const std::shared_ptr<prometheus::Registry> registry;
  const Labels labels;
  // Loading.
  Family<Counter>& loaded =
      CounterFamily("tandem_kv_loaded_chunks_total", "Cached chunks decoded, by origin and level");
  Family<Counter>& loaded_bytes =
      CounterFamily("tandem_kv_loaded_bytes_total", "Encoded bytes of cached chunks decoded");
  Counter& text = CounterFamily("tandem_kv_text_chunks_total",
                                "Cached chunks that the adapter had computed instead of loaded")
                      .Add(labels);
  Family<Counter>& refused =
      CounterFamily("tandem_kv_refused_chunks_total",
                    "Chunks that were damaged or not for this model, by origin");
  Family<Counter>& peer_failures = CounterFamily(
      "tandem_kv_peer_failures_total", "Conversations with other nodes that failed, by code");
  Family<Gauge>& link = GaugeFamily("tandem_kv_link_bytes_per_second",
                                    "Effective bandwidth from another node, as loads measured it");
  Family<Counter>& prompt_tokens =
      CounterFamily("tandem_kv_prompt_tokens_total", "Prompt tokens by where their KV came from");
  Family<Counter>& handed_over =
      CounterFamily("tandem_kv_handoff_chunks_total", "Chunks handed over, by encoding");
  Counter& saved = CounterFamily("tandem_kv_saved_seconds_total",
                                 "Computing spared by cached prefixes, less what loading took")
                       .Add(labels);
  // Keeping.
  Family<Counter>& kept =
      CounterFamily("tandem_kv_kept_chunks_total", "New chunks encoded and kept, by level");
  Family<Counter>& kept_bytes =
      CounterFamily("tandem_kv_kept_bytes_total", "Encoded bytes of new chunks, by level");
  Counter& encode_seconds =
      CounterFamily("tandem_kv_encode_seconds_total", "Time spent encoding new chunks").Add(labels);
  Counter& keep_dropped = CounterFamily("tandem_kv_keep_dropped_total",
                                        "New chunks not kept because too much waited to be encoded")
                              .Add(labels);
  // The store, by tier; none of a tier that is not there: it is not unhealthy.
  struct TierFamilies {
    Gauge *bytes, *limit, *chunks, *pending, *healthy;
    Counter *hits, *evictions, *evicted_bytes, *damaged, *failures, *dropped;
  };
  std::array<std::optional<TierFamilies>, 3> tiers;  // guarded by store_mutex
  Counter* misses = nullptr;
  Gauge *pins = nullptr, *leases = nullptr;
  std::mutex store_mutex;
};

void KvMetrics::Families::AddStore() {
  misses = &CounterFamily("tandem_kv_misses_total", "Prompts of which some chunk was nowhere")
                .Add(labels);
  pins = &GaugeFamily("tandem_kv_pins", "Chunk ids kept from eviction").Add(labels);
  leases = &GaugeFamily("tandem_kv_leases", "Chunk ids kept for peers that are loading them")
                .Add(labels);
}

void KvMetrics::Families::AddTier(size_t i) {
  const auto gauge = [this](const char* name, const char* help, const Labels& all) {
    return &GaugeFamily(name, help).Add(all);
  };
  const auto counter = [this](const char* name, const char* help, const Labels& all) {
    return &CounterFamily(name, help).Add(all);
  };
  const Labels all = With(labels, "tier", kvstore::OriginName(static_cast<kvstore::Origin>(i)));
  tiers[i] = {
      .bytes = gauge("tandem_kv_tier_bytes", "Bytes of chunks held", all),
      .limit = gauge("tandem_kv_tier_limit_bytes", "Most bytes of chunks", all),
      .chunks = gauge("tandem_kv_tier_chunks", "Chunks held, each level for itself", all),
      .pending = gauge("tandem_kv_tier_pending_bytes", "Bytes that wait to be written", all),
      .healthy = gauge("tandem_kv_tier_healthy", "0 while the tier is left alone", all),
      .hits = counter("tandem_kv_tier_hits_total", "Chunks found there", all),
      .evictions = counter("tandem_kv_tier_evictions_total", "Chunks evicted for room", all),
      .evicted_bytes = counter("tandem_kv_tier_evicted_bytes_total", "Bytes evicted", all),
      .damaged = counter("tandem_kv_tier_damaged_total", "Chunks found damaged, dropped", all),
      .failures = counter("tandem_kv_tier_failures_total", "Operations that failed", all),
      .dropped = counter("tandem_kv_tier_dropped_writes_total",
                         "Chunks not written there because too much waited", all),
  };
}

KvMetrics::KvMetrics(std::shared_ptr<prometheus::Registry> registry, std::string model_name,
                     std::string node)
    : families_(std::make_unique<Families>(
          std::move(registry),
          Labels{{"model_name", std::move(model_name)}, {"worker", std::move(node)}})) {}

KvMetrics::~KvMetrics() = default;

void KvMetrics::ChunkLoaded(kvstore::Origin origin, kvstore::Level level, uint64_t bytes) {
  const Labels labels = With(With(families_->labels, "origin", kvstore::OriginName(origin)),
                             "level", kvstore::codec::LevelName(level));
  families_->loaded.Add(labels).Increment();
  families_->loaded_bytes.Add(labels).Increment(static_cast<double>(bytes));
}

void KvMetrics::TextChosen() { families_->text.Increment(); }

void KvMetrics::ChunkRefused(kvstore::Origin origin, const absl::Status& why) {
  Labels labels = With(families_->labels, "origin", kvstore::OriginName(origin));
  labels["code"] = absl::StatusCodeToString(why.code());
  families_->refused.Add(labels).Increment();
}

void KvMetrics::PeerFailed(const absl::Status& why) {
  Labels labels = families_->labels;
  labels["code"] = absl::StatusCodeToString(why.code());
  families_->peer_failures.Add(labels).Increment();
}

void KvMetrics::LinkMeasured(const std::string& address, double bytes_per_s) {
  families_->link.Add(With(families_->labels, "from", address)).Set(bytes_per_s);
}

void KvMetrics::ChunkKept(kvstore::Level level, uint64_t bytes, double encode_seconds) {
  const Labels labels = With(families_->labels, "level", kvstore::codec::LevelName(level));
  families_->kept.Add(labels).Increment();
  families_->kept_bytes.Add(labels).Increment(static_cast<double>(bytes));
  families_->encode_seconds.Increment(encode_seconds);
}

void KvMetrics::KeepDropped() { families_->keep_dropped.Increment(); }

void KvMetrics::HandoffChunks(const std::array<uint32_t, kvstore::kEncodings>& encodings) {
  for (size_t i = 0; i < encodings.size(); ++i) {
    if (encodings[i] == 0) continue;
    const std::string_view name =
        i == 0 ? "raw" : kvstore::codec::LevelName(kvstore::codec::kAllLevels[i - 1]);
    families_->handed_over.Add(With(families_->labels, "encoding", name)).Increment(encodings[i]);
  }
}

void KvMetrics::PromptTokens(const char* origin, uint64_t n) {
  families_->prompt_tokens.Add(With(families_->labels, "origin", origin))
      .Increment(static_cast<double>(n));
}

void KvMetrics::TimeSaved(double seconds) {
  if (seconds > 0) families_->saved.Increment(seconds);
}

void KvMetrics::SetStore(const kvstore::StoreStats& stats) {
  std::lock_guard lock(families_->store_mutex);
  // Prometheus counters only go up: each is raised to where the store's own figure is.
  const auto raise = [](Counter* counter, uint64_t to) {
    counter->Increment(std::max(0.0, static_cast<double>(to) - counter->Value()));
  };
  for (size_t i = 0; i < stats.tiers.size(); ++i) {
    if (!stats.tiers[i]) continue;
    if (!families_->tiers[i]) families_->AddTier(i);
    Families::TierFamilies& tier = *families_->tiers[i];
    raise(tier.hits, stats.hits[i]);
    raise(tier.dropped, stats.dropped_writes[i]);
    tier.pending->Set(static_cast<double>(stats.pending_bytes[i]));
    tier.bytes->Set(static_cast<double>(stats.tiers[i]->bytes));
    tier.limit->Set(static_cast<double>(stats.tiers[i]->limit_bytes));
    tier.chunks->Set(static_cast<double>(stats.tiers[i]->chunks));
    tier.healthy->Set(stats.tiers[i]->healthy ? 1 : 0);
    raise(tier.evictions, stats.tiers[i]->evictions);
    raise(tier.evicted_bytes, stats.tiers[i]->evicted_bytes);
    raise(tier.damaged, stats.tiers[i]->damaged);
    raise(tier.failures, stats.tiers[i]->failures);
  }
  raise(families_->misses, stats.misses);
  families_->pins->Set(static_cast<double>(stats.pins));
  families_->leases->Set(static_cast<double>(stats.leases));
}

}  // namespace tandem::workers
