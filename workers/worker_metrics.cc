#include "workers/worker_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <algorithm>
#include <array>
#include <utility>

#include "workers/metric_buckets.h"

namespace tandem::workers {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;

constexpr std::array kFinishes = {"error", "stop", "length", "cancelled", "handoff", "moved"};
constexpr std::array kReasons = {"other", "queue_full", "draining", "invalid", "model"};
constexpr std::array kDirections = {"send", "receive"};

/// The word's place in `words`, or 0, so that no caller can make series without end.
template <size_t n>
size_t IndexOf(const std::array<const char*, n>& words, std::string_view word) {
  const auto found = std::find(words.begin(), words.end(), word);
  return found == words.end() ? 0 : static_cast<size_t>(found - words.begin());
}

/// Makes metrics that all carry the same labels.
class Maker {
 public:
  Maker(prometheus::Registry& registry, Labels labels)
      : registry_(registry), labels_(std::move(labels)) {}

  prometheus::Family<Counter>& Counters(const char* name, const char* help) const {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry_);
  }
  Counter& OneCounter(const char* name, const char* help) const {
    return Counters(name, help).Add(labels_);
  }
  Gauge& OneGauge(const char* name, const char* help) const {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry_).Add(labels_);
  }
  Histogram& OneHistogram(const char* name, const char* help, const Buckets& buckets) const {
    return With(name, help, buckets, {});
  }
  Histogram& With(const char* name, const char* help, const Buckets& buckets,
                  const Labels& more) const {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry_).Add(Joined(more),
                                                                                      buckets);
  }
  Labels Joined(const Labels& more) const {
    Labels all = labels_;
    all.insert(more.begin(), more.end());
    return all;
  }
  /// One counter for each word of a closed set, made at once so that rates start from 0.
  template <size_t n>
  std::array<Counter*, n> PerWord(const char* name, const char* help, const char* label,
                                  const std::array<const char*, n>& words) const {
    auto& family = Counters(name, help);
    std::array<Counter*, n> counters;
    for (size_t i = 0; i < n; ++i) counters[i] = &family.Add(Joined({{label, words[i]}}));
    return counters;
  }

 private:
  prometheus::Registry& registry_;
  const Labels labels_;
};

/// Our own families; what they mean is in docs/metrics.md.
struct OwnFamilies {
  explicit OwnFamilies(const Maker& make, const Buckets& request_tokens)
      : prompt_length(make.OneHistogram("tandem_worker_request_prompt_tokens",
                                        "Prompt tokens of a request", request_tokens)),
        generated_length(make.OneHistogram("tandem_worker_request_generated_tokens",
                                           "Tokens generated for a request", request_tokens)),
        handoff_failures(make.Counters("tandem_pd_handoff_failures_total",
                                       "Handoffs that failed, by status code")),
        labels(make.Joined({})) {
    Loads(make);
    Counts(make);
    Times(make);
    for (size_t i = 0; i < kDirections.size(); ++i) {
      const Labels direction = {{"direction", kDirections[i]}};
      handoff_seconds[i] =
          &make.With("tandem_pd_handoff_seconds", "Duration of a sequence's whole handoff",
                     TransferSecondsBuckets(), direction);
      handoff_bytes[i] = &make.With("tandem_pd_handoff_bytes", "KV bytes of a sequence's handoff",
                                    TransferBytesBuckets(), direction);
    }
  }

  void Loads(const Maker& make) {
    running = &make.OneGauge("tandem_worker_requests_running", "Requests in the batch");
    waiting = &make.OneGauge("tandem_worker_requests_waiting", "Requests queued");
    queue_limit = &make.OneGauge("tandem_worker_queue_limit_requests", "Most requests queued");
    kv_used = &make.OneGauge("tandem_worker_kv_used_tokens", "Tokens of KV held");
    kv_limit = &make.OneGauge("tandem_worker_kv_limit_tokens", "Tokens of KV that fit");
    held = &make.OneGauge("tandem_pd_handoff_held_bytes", "Computed KV that waits to be fetched");
    held_limit = &make.OneGauge("tandem_pd_handoff_limit_bytes", "Most KV that may wait");
    connections = &make.OneGauge("tandem_pd_connections", "Open data-plane connections");
    parked = &make.OneGauge("tandem_worker_parked_sequences", "Sequences whose KV was put aside");
    parked_bytes = &make.OneGauge("tandem_worker_parked_bytes", "Encoded KV of parked sequences");
  }
  void Counts(const Maker& make) {
    prompt_tokens = &make.OneCounter("tandem_worker_prompt_tokens_total", "Prompt tokens read");
    cached_tokens =
        &make.OneCounter("tandem_worker_cached_tokens_total", "Prompt tokens whose KV was reused");
    generated_tokens = &make.OneCounter("tandem_worker_generated_tokens_total", "Tokens generated");
    ended = make.PerWord("tandem_worker_requests_total", "Requests that ended, by how", "finish",
                         kFinishes);
    rejected = make.PerWord("tandem_worker_rejected_total", "Requests refused, by why", "reason",
                            kReasons);
    parked_total = &make.OneCounter("tandem_worker_parked_total",
                                    "Times that a sequence's KV was put aside to make room");
    moved_total = &make.OneCounter("tandem_worker_moved_total",
                                   "Sequences that left with their KV for another worker");
    leases_expired = &make.OneCounter("tandem_pd_handoff_leases_expired_total",
                                      "Computed KV dropped because nobody fetched it in time");
  }
  void Times(const Maker& make) {
    queue = &make.OneHistogram("tandem_worker_queue_seconds", "Time before a request's first step",
                               TtftBuckets());
    step = &make.OneHistogram("tandem_worker_step_seconds", "Duration of a forward pass",
                              FineTokenIntervalBuckets());
    step_tokens = &make.OneHistogram("tandem_worker_step_tokens", "Tokens of a forward pass",
                                     StepTokensBuckets());
    prefill = &make.OneHistogram("tandem_pd_prefill_seconds",
                                 "First step to first token of a request", TtftBuckets());
    decode = &make.OneHistogram("tandem_pd_decode_seconds",
                                "First step to last token of a request on the decode worker",
                                RequestBuckets());
  }

  Gauge *running, *waiting, *queue_limit, *kv_used, *kv_limit, *held, *held_limit, *connections,
      *parked, *parked_bytes;
  Counter *prompt_tokens, *cached_tokens, *generated_tokens, *leases_expired, *parked_total,
      *moved_total;
  std::array<Counter*, kFinishes.size()> ended;
  std::array<Counter*, kReasons.size()> rejected;
  Histogram *queue, *step, *step_tokens, *prefill, *decode;
  std::array<Histogram*, 2> handoff_seconds, handoff_bytes;
  Histogram &prompt_length, &generated_length;
  prometheus::Family<Counter>& handoff_failures;
  const Labels labels;
};

/// The same under vLLM's names, which gateways and dashboards look for.
struct VllmFamilies {
  VllmFamilies(const Maker& make, const Buckets& request_tokens)
      : running(make.OneGauge("vllm:num_requests_running", "Requests in the batch")),
        waiting(make.OneGauge("vllm:num_requests_waiting", "Requests queued")),
        kv_usage(make.OneGauge("vllm:kv_cache_usage_perc", "KV cache in use, 0 to 1")),
        prefix_queries(
            make.OneCounter("vllm:prefix_cache_queries_total", "Prompt tokens looked up")),
        prefix_hits(make.OneCounter("vllm:prefix_cache_hits_total", "Prompt tokens reused")),
        prompt_tokens(make.OneCounter("vllm:prompt_tokens_total", "Prompt tokens read")),
        generated_tokens(make.OneCounter("vllm:generation_tokens_total", "Tokens generated")),
        finished(make.PerWord("vllm:request_success_total", "Requests that ended, by how",
                              "finished_reason", kVllmFinishes)),
        ttft(make.OneHistogram("vllm:time_to_first_token_seconds",
                               "Arrival at the worker to first token", TtftBuckets())),
        interval(make.OneHistogram("vllm:inter_token_latency_seconds", "Time between two tokens",
                                   TokenIntervalBuckets())),
        tpot(make.OneHistogram("vllm:request_time_per_output_token_seconds",
                               "A request's mean time per token", TokenIntervalBuckets())),
        e2e(make.OneHistogram("vllm:e2e_request_latency_seconds",
                              "Arrival at the worker to last token", RequestBuckets())),
        queue(
            make.OneHistogram("vllm:request_queue_time_seconds", "Time queued", RequestBuckets())),
        prefill(make.OneHistogram("vllm:request_prefill_time_seconds", "Time in prefill",
                                  RequestBuckets())),
        decode(make.OneHistogram("vllm:request_decode_time_seconds", "Time in decode",
                                 RequestBuckets())),
        prompt_length(make.OneHistogram("vllm:request_prompt_tokens", "Prompt tokens of a request",
                                        request_tokens)),
        generated_length(make.OneHistogram("vllm:request_generation_tokens",
                                           "Tokens generated for a request", request_tokens)),
        step_tokens(make.OneHistogram("vllm:iteration_tokens_total", "Tokens of a forward pass",
                                      StepTokensBuckets())) {}

  static constexpr std::array kVllmFinishes = {"stop", "length"};

  Gauge &running, &waiting, &kv_usage;
  Counter &prefix_queries, &prefix_hits, &prompt_tokens, &generated_tokens;
  std::array<Counter*, kVllmFinishes.size()> finished;
  Histogram &ttft, &interval, &tpot, &e2e, &queue, &prefill, &decode, &prompt_length,
      &generated_length, &step_tokens;
};

void ObserveTimes(Histogram& histogram, const Buckets& buckets, uint32_t times, double value) {
  std::vector<double> increments(buckets.size() + 1);
  const auto bucket = std::lower_bound(buckets.begin(), buckets.end(), value) - buckets.begin();
  increments[static_cast<size_t>(bucket)] = times;
  histogram.ObserveMultiple(increments, value * times);
}

}  // namespace

struct WorkerMetrics::Families {
  Families(prometheus::Registry& registry, const WorkerMetricsOptions& options)
      : own(Maker(registry, {{"model_name", options.model_name},
                             {"worker", options.worker_name},
                             {"phase", options.phase}}),
            RequestTokensBuckets(options.context_tokens)),
        vllm_labels({{"model_name", options.model_name}, {"engine", options.worker_name}}),
        vllm(Maker(registry, vllm_labels), RequestTokensBuckets(options.context_tokens)),
        interval_buckets(TokenIntervalBuckets()) {}

  OwnFamilies own;
  const Labels vllm_labels;
  VllmFamilies vllm;
  const Buckets interval_buckets;
};

WorkerMetrics::WorkerMetrics(std::shared_ptr<prometheus::Registry> registry,
                             WorkerMetricsOptions options)
    : registry_(std::move(registry)), families_(std::make_unique<Families>(*registry_, options)) {}

WorkerMetrics::~WorkerMetrics() = default;

void WorkerMetrics::SetLoad(const WorkerLoadValues& load, const WorkerLoadValues& whole) {
  OwnFamilies& own = families_->own;
  own.running->Set(load.running);
  own.waiting->Set(load.waiting);
  own.queue_limit->Set(load.queue_limit);
  own.kv_used->Set(static_cast<double>(load.kv_used_tokens));
  own.kv_limit->Set(static_cast<double>(load.kv_limit_tokens));
  own.held->Set(static_cast<double>(load.handoff_held_bytes));
  own.held_limit->Set(static_cast<double>(load.handoff_limit_bytes));
  own.connections->Set(load.connections);
  own.parked->Set(load.parked);
  own.parked_bytes->Set(static_cast<double>(load.parked_bytes));
  VllmFamilies& vllm = families_->vllm;
  vllm.running.Set(whole.running);
  vllm.waiting.Set(whole.waiting);
  const double limit = static_cast<double>(std::max<uint64_t>(1, whole.kv_limit_tokens));
  vllm.kv_usage.Set(static_cast<double>(whole.kv_used_tokens) / limit);
}

void WorkerMetrics::SetCacheConfig(uint32_t chunk_tokens, uint64_t chunks) {
  Labels labels = families_->vllm_labels;
  labels["block_size"] = std::to_string(chunk_tokens);
  labels["num_gpu_blocks"] = std::to_string(chunks);
  prometheus::BuildGauge()
      .Name("vllm:cache_config_info")
      .Help("Always 1; the KV cache's shape is in the labels")
      .Register(*registry_)
      .Add(labels)
      .Set(1);
}

void WorkerMetrics::PrefillQueued(double seconds) {
  families_->own.queue->Observe(seconds);
  families_->vllm.queue.Observe(seconds);
}

void WorkerMetrics::DecodeQueued(double seconds) { PrefillQueued(seconds); }

void WorkerMetrics::PrefillDone(uint32_t prompt_tokens, uint32_t cached_tokens,
                                double queue_seconds, double seconds) {
  OwnFamilies& own = families_->own;
  own.prompt_tokens->Increment(prompt_tokens);
  own.cached_tokens->Increment(cached_tokens);
  own.prompt_length.Observe(prompt_tokens);
  own.prefill->Observe(seconds);
  VllmFamilies& vllm = families_->vllm;
  vllm.prefix_queries.Increment(prompt_tokens);
  vllm.prefix_hits.Increment(cached_tokens);
  vllm.prompt_tokens.Increment(prompt_tokens);
  vllm.prompt_length.Observe(prompt_tokens);
  vllm.prefill.Observe(seconds);
  vllm.ttft.Observe(queue_seconds + seconds);
}

void WorkerMetrics::DecodeDone(uint32_t generated_tokens, double queue_seconds, double seconds) {
  OwnFamilies& own = families_->own;
  own.decode->Observe(seconds);
  own.generated_length.Observe(generated_tokens);
  VllmFamilies& vllm = families_->vllm;
  vllm.decode.Observe(seconds);
  vllm.generated_length.Observe(generated_tokens);
  vllm.e2e.Observe(queue_seconds + seconds);
  if (generated_tokens > 0) vllm.tpot.Observe(seconds / generated_tokens);
}

void WorkerMetrics::PrefillStep(uint32_t tokens, double seconds) {
  families_->own.step->Observe(seconds);
  families_->own.step_tokens->Observe(tokens);
  families_->vllm.step_tokens.Observe(tokens);
}

void WorkerMetrics::DecodeStep(uint32_t sequences, double seconds) {
  PrefillStep(sequences, seconds);
  ObserveTimes(families_->vllm.interval, families_->interval_buckets, sequences, seconds);
}

void WorkerMetrics::GeneratedTokens(uint32_t n) {
  families_->own.generated_tokens->Increment(n);
  families_->vllm.generated_tokens.Increment(n);
}

void WorkerMetrics::RequestEnded(std::string_view finish) {
  families_->own.ended[IndexOf(kFinishes, finish)]->Increment();
  const auto& words = VllmFamilies::kVllmFinishes;
  const auto found = std::find(words.begin(), words.end(), finish);
  if (found == words.end()) return;
  families_->vllm.finished[static_cast<size_t>(found - words.begin())]->Increment();
}

void WorkerMetrics::Parked() { families_->own.parked_total->Increment(); }

void WorkerMetrics::Moved() { families_->own.moved_total->Increment(); }

void WorkerMetrics::HandoffSent(uint64_t bytes, double seconds) {
  families_->own.handoff_bytes[0]->Observe(static_cast<double>(bytes));
  families_->own.handoff_seconds[0]->Observe(seconds);
}

void WorkerMetrics::HandoffReceived(uint64_t bytes, double seconds) {
  families_->own.handoff_bytes[1]->Observe(static_cast<double>(bytes));
  families_->own.handoff_seconds[1]->Observe(seconds);
}

void WorkerMetrics::HandoffFailed(HandoffDirection direction, absl::StatusCode code) {
  Labels labels = families_->own.labels;
  labels["direction"] = kDirections[static_cast<size_t>(direction)];
  labels["code"] = absl::StatusCodeToString(code);
  families_->own.handoff_failures.Add(labels).Increment();
}

void WorkerMetrics::HandoffLeaseExpired() { families_->own.leases_expired->Increment(); }

void WorkerMetrics::Rejected(std::string_view reason) {
  families_->own.rejected[IndexOf(kReasons, reason)]->Increment();
}

}  // namespace tandem::workers
