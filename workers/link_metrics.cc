#include "workers/link_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include <algorithm>
#include <array>
#include <utility>

namespace tandem::workers {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Labels;

constexpr std::array kStates = {"degraded", "asymmetric", "relayed"};

}  // namespace

struct LinkMetrics::Families {
  /// The series of one link.
  struct Link {
    Gauge *bytes_per_s, *rtt, *confidence, *age;
    std::array<Gauge*, kStates.size()> states;
    Counter* probe_bytes;
  };
  Families(std::shared_ptr<prometheus::Registry> shared, Labels all)
      : registry(std::move(shared)), labels(std::move(all)) {}

  Family<Gauge>& NewGauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(*registry);
  }
  Link Add(const std::string& from);
  void Remove(const Link& link);

  const std::shared_ptr<prometheus::Registry> registry;
  const Labels labels;
  Family<Gauge>& bytes_per_s =
      NewGauge("tandem_pd_link_bytes_per_second", "Bandwidth from one worker to another");
  Family<Gauge>& rtt = NewGauge("tandem_pd_link_rtt_seconds", "Round trip between two workers");
  Family<Gauge>& confidence =
      NewGauge("tandem_pd_link_confidence", "How sure the bandwidth is, 0 to 1");
  Family<Gauge>& age = NewGauge("tandem_pd_link_age_seconds", "Time since the last measurement");
  Family<Gauge>& state = NewGauge("tandem_pd_link_state", "1 where it is so, by state");
  Family<Counter>& probe_bytes = prometheus::BuildCounter()
                                     .Name("tandem_pd_link_probe_bytes_total")
                                     .Help("Bytes of probes that came over a link")
                                     .Register(*registry);
  std::map<std::string, Link> links;  // by the other worker's name
};

LinkMetrics::Families::Link LinkMetrics::Families::Add(const std::string& from) {
  Labels all = labels;
  all["from"] = from;
  Link link = {.bytes_per_s = &bytes_per_s.Add(all),
               .rtt = &rtt.Add(all),
               .confidence = &confidence.Add(all),
               .age = &age.Add(all),
               .states = {},
               .probe_bytes = &probe_bytes.Add(all)};
  for (size_t i = 0; i < kStates.size(); ++i) {
    all["state"] = kStates[i];
    link.states[i] = &state.Add(all);
  }
  return link;
}

void LinkMetrics::Families::Remove(const Link& link) {
  bytes_per_s.Remove(link.bytes_per_s);
  rtt.Remove(link.rtt);
  confidence.Remove(link.confidence);
  age.Remove(link.age);
  for (Gauge* gauge : link.states) state.Remove(gauge);
  probe_bytes.Remove(link.probe_bytes);
}

LinkMetrics::LinkMetrics(std::shared_ptr<prometheus::Registry> registry, std::string model_name,
                         std::string worker)
    : families_(std::make_unique<Families>(
          std::move(registry),
          Labels{{"model_name", std::move(model_name)}, {"to", std::move(worker)}})) {}

LinkMetrics::~LinkMetrics() = default;

void LinkMetrics::Set(const std::vector<kvstore::LinkEstimate>& links,
                      const std::map<std::string, std::string>& names, absl::Time now) {
  std::map<std::string, Families::Link> present;
  for (const kvstore::LinkEstimate& link : links) {
    const auto name = names.find(link.address);
    const std::string& from = name == names.end() ? link.address : name->second;
    auto known = families_->links.extract(from);
    if (known.empty()) {
      present.emplace(from, families_->Add(from));
    } else {
      present.insert(std::move(known));
    }
    const Families::Link& series = present.at(from);
    series.bytes_per_s->Set(link.bytes_per_s);
    series.rtt->Set(link.rtt_s);
    series.confidence->Set(link.confidence);
    series.age->Set(absl::ToDoubleSeconds(now - link.measured));
    const std::array<bool, kStates.size()> states = {link.degraded(), link.asymmetric(),
                                                     link.relayed};
    for (size_t i = 0; i < states.size(); ++i) series.states[i]->Set(states[i] ? 1 : 0);
    series.probe_bytes->Increment(
        std::max(0.0, static_cast<double>(link.probe_bytes) - series.probe_bytes->Value()));
  }
  for (const auto& [unused, gone] : families_->links) families_->Remove(gone);
  families_->links = std::move(present);
}

}  // namespace tandem::workers
