#include "server/router_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "workers/metric_buckets.h"

namespace tandem::server {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;

constexpr std::array kStages = {"router_queue", "prefill_queue", "prefill",
                                "handoff",      "decode_queue",  "decode"};
constexpr std::array kReasons = {"other",       "queue_full", "draining", "no_worker",
                                 "invalid",     "tenant",     "model",    "rate",
                                 "concurrency", "too_late",   "displaced"};
constexpr std::array kPhases = {"prefill", "decode", "mixed", "store"};
constexpr std::array kCauses = {"lost", "broken", "handoff", "refused", "given_back", "moved"};
constexpr std::array kPlanOutcomes = {"kept", "changed", "dry_run", "rescued", "joined", "failed"};
constexpr std::array kResumptionRefusals = {"budget", "poisoned", "no_worker"};
constexpr char kOtherTenant[] = "other";

/// Seconds that a router adds: mostly below a millisecond, where vLLM has no bucket.
Buckets OverheadBuckets() {
  return {.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1};
}

/// What is counted for each tenant.
struct TenantFamilies {
  Counter *started, *prompt_tokens, *generated_tokens;
  Histogram *ttft, *tpot, *e2e;
};

}  // namespace

struct RouterMetrics::Families {
  Families(prometheus::Registry& registry, const std::string& model_name)
      : labels({{"model_name", model_name}}),
        ended(BuildCounter()
                  .Name("tandem_router_requests_total")
                  .Help("Admitted requests that ended, by status code and finish reason")
                  .Register(registry)),
        in_flight(BuildGauge()
                      .Name("tandem_router_requests_in_flight")
                      .Help("Requests admitted and not yet ended")
                      .Register(registry)
                      .Add(labels)),
        limit(BuildGauge()
                  .Name("tandem_router_requests_limit")
                  .Help("Most requests in flight")
                  .Register(registry)
                  .Add(labels)),
        queued(BuildGauge()
                   .Name("tandem_router_requests_queued")
                   .Help("Requests that wait in the router for their turn")
                   .Register(registry)
                   .Add(labels)),
        directory_chunks(BuildGauge()
                             .Name("tandem_router_directory_chunks")
                             .Help("Chunks that some worker or store is known to hold")
                             .Register(registry)
                             .Add(labels)),
        plan_leader(BuildGauge()
                        .Name("tandem_router_plan_leader")
                        .Help("1 where this router is the one that gives workers their phases")
                        .Register(registry)
                        .Add(labels)),
        plan_goodput(BuildGauge()
                         .Name("tandem_router_plan_goodput_requests_per_second")
                         .Help("Goodput of the present phases, as last predicted")
                         .Register(registry)
                         .Add(labels)),
        plan_changed(BuildGauge()
                         .Name("tandem_router_plan_changed_timestamp_seconds")
                         .Help("When this router last changed phases, in Unix time")
                         .Register(registry)
                         .Add(labels)),
        overhead(BuildHistogram()
                     .Name("tandem_router_overhead_seconds")
                     .Help("What the router itself adds to a first token")
                     .Register(registry)
                     .Add(labels, OverheadBuckets())) {
    AddClosedSets(registry);
  }

  Labels With(const std::string& name, std::string_view value) const {
    Labels all = labels;
    all[name] = std::string(value);
    return all;
  }

  void AddClosedSets(prometheus::Registry& registry) {
    auto& rejections = BuildCounter()
                           .Name("tandem_router_rejected_total")
                           .Help("Requests refused before admission, by why")
                           .Register(registry);
    for (const char* reason : kReasons) {
      rejected.push_back(&rejections.Add(With("reason", reason)));
    }
    auto& resumptions = BuildCounter()
                            .Name("tandem_router_resumptions_total")
                            .Help("Times that a request went on elsewhere, by why")
                            .Register(registry);
    auto& plans = BuildCounter()
                      .Name("tandem_router_plan_decisions_total")
                      .Help("What the planner has decided, by outcome")
                      .Register(registry);
    for (const char* outcome : kPlanOutcomes) {
      planned.push_back(&plans.Add(With("outcome", outcome)));
    }
    for (const char* cause : kCauses) resumed.push_back(&resumptions.Add(With("cause", cause)));
    auto& refusals = BuildCounter()
                         .Name("tandem_router_resumptions_refused_total")
                         .Help("Requests that were not resumed after a loss, by why")
                         .Register(registry);
    for (const char* reason : kResumptionRefusals) {
      not_resumed.push_back(&refusals.Add(With("reason", reason)));
    }
    auto& pool = BuildGauge()
                     .Name("tandem_router_workers")
                     .Help("Workers that can be used now")
                     .Register(registry);
    for (const char* phase : kPhases) workers.push_back(&pool.Add(With("phase", phase)));
    auto& stages = BuildHistogram()
                       .Name("tandem_router_stage_seconds")
                       .Help("Where a finished request's time went")
                       .Register(registry);
    for (const char* stage : kStages) {
      stage_seconds.push_back(&stages.Add(With("stage", stage), TtftBuckets()));
    }
  }

  void AddTenant(prometheus::Registry& registry, const std::string& tenant) {
    const Labels all = With("tenant", tenant);
    const auto counter = [&](const char* name, const char* help) {
      return &BuildCounter().Name(name).Help(help).Register(registry).Add(all);
    };
    const auto histogram = [&](const char* name, const char* help, const Buckets& buckets) {
      return &BuildHistogram().Name(name).Help(help).Register(registry).Add(all, buckets);
    };
    tenants[tenant] = {
        .started = counter("tandem_router_requests_started_total", "Requests admitted"),
        .prompt_tokens =
            counter("tandem_router_prompt_tokens_total", "Prompt tokens of requests that ended"),
        .generated_tokens = counter("tandem_router_generated_tokens_total",
                                    "Tokens generated for requests that ended"),
        .ttft =
            histogram("tandem_router_ttft_seconds", "Arrival to first token sent", TtftBuckets()),
        .tpot = histogram("tandem_router_tpot_seconds",
                          "A request's mean time per token after the first",
                          FineTokenIntervalBuckets()),
        .e2e = histogram("tandem_router_request_seconds", "Arrival to end", RequestBuckets()),
    };
  }

  const std::pair<const std::string, TenantFamilies>& Tenant(std::string_view name) const {
    const auto found = tenants.find(name);
    return found == tenants.end() ? *tenants.find(kOtherTenant) : *found;
  }

  const Labels labels;
  Family<Counter>& ended;
  Gauge &in_flight, &limit, &queued, &directory_chunks;
  Gauge &plan_leader, &plan_goodput, &plan_changed;
  Histogram& overhead;
  std::vector<Counter*> rejected;         // as kReasons
  std::vector<Counter*> resumed;          // as kCauses
  std::vector<Counter*> planned;          // as kPlanOutcomes
  std::vector<Counter*> not_resumed;      // as kResumptionRefusals
  std::vector<Gauge*> workers;            // as kPhases
  std::vector<Histogram*> stage_seconds;  // as kStages
  // Not changed after construction; "other" is always there.
  std::map<std::string, TenantFamilies, std::less<>> tenants;
};

RouterMetrics::RouterMetrics(std::shared_ptr<prometheus::Registry> registry, std::string model_name,
                             const std::vector<std::string>& tenants)
    : registry_(std::move(registry)),
      families_(std::make_unique<Families>(*registry_, model_name)) {
  for (const std::string& tenant : tenants) families_->AddTenant(*registry_, tenant);
  families_->AddTenant(*registry_, kOtherTenant);
}

RouterMetrics::~RouterMetrics() = default;

void RouterMetrics::RequestStarted(std::string_view tenant) {
  families_->Tenant(tenant).second.started->Increment();
}

void RouterMetrics::RequestEnded(const EndedRequest& request) {
  const auto& [tenant, metrics] = families_->Tenant(request.tenant);
  Labels labels = families_->With("tenant", tenant);
  labels["code"] = absl::StatusCodeToString(request.code);
  labels["finish"] =
      request.finish == "stop" || request.finish == "length" ? std::string(request.finish) : "none";
  families_->ended.Add(labels).Increment();
  if (request.ttft_s) metrics.ttft->Observe(*request.ttft_s);
  if (request.tpot_s) metrics.tpot->Observe(*request.tpot_s);
  metrics.e2e->Observe(request.e2e_s);
  metrics.prompt_tokens->Increment(request.prompt_tokens);
  metrics.generated_tokens->Increment(request.generated_tokens);
}

void RouterMetrics::Rejected(std::string_view reason) {
  const auto found = std::find(kReasons.begin(), kReasons.end(), reason);
  const size_t index = found == kReasons.end() ? 0 : static_cast<size_t>(found - kReasons.begin());
  families_->rejected[index]->Increment();
}

void RouterMetrics::Resumed(std::string_view cause) {
  for (size_t i = 0; i < kCauses.size(); ++i) {
    if (cause == kCauses[i]) families_->resumed[i]->Increment();
  }
}

void RouterMetrics::ResumptionRefused(std::string_view reason) {
  for (size_t i = 0; i < kResumptionRefusals.size(); ++i) {
    if (reason == kResumptionRefusals[i]) families_->not_resumed[i]->Increment();
  }
}

void RouterMetrics::Queued(uint32_t n) { families_->queued.Set(n); }

void RouterMetrics::InFlight(uint32_t n, uint32_t limit) {
  families_->in_flight.Set(n);
  families_->limit.Set(limit);
}

void RouterMetrics::Workers(std::string_view phase, uint32_t n) {
  for (size_t i = 0; i < kPhases.size(); ++i) {
    if (phase == kPhases[i]) families_->workers[i]->Set(n);
  }
}

void RouterMetrics::Planned(std::string_view outcome) {
  for (size_t i = 0; i < kPlanOutcomes.size(); ++i) {
    if (outcome == kPlanOutcomes[i]) families_->planned[i]->Increment();
  }
}

void RouterMetrics::Plan(bool leads, double goodput_rps, double changed_s) {
  families_->plan_leader.Set(leads ? 1 : 0);
  families_->plan_goodput.Set(goodput_rps);
  families_->plan_changed.Set(changed_s);
}

void RouterMetrics::DirectoryChunks(uint64_t n) {
  families_->directory_chunks.Set(static_cast<double>(n));
}

void RouterMetrics::StageSeconds(Stage stage, double seconds) {
  families_->stage_seconds[static_cast<size_t>(stage)]->Observe(seconds);
}

void RouterMetrics::RouterOverheadSeconds(double seconds) { families_->overhead.Observe(seconds); }

}  // namespace tandem::server
