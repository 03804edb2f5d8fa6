#include "kvstore/transfer/link_table.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace tandem::kvstore {
namespace {

constexpr size_t kLinks = 1024, kRates = 32, kRtts = 3;
/// A sample counts half as much as one that is so much newer: of many the median counts, so that an
/// odd one moves nothing; of few the newest, so that a change shows soon.
constexpr absl::Duration kHalfLife = absl::Seconds(4);
/// The memory of what is usual.
constexpr absl::Duration kUsual = absl::Minutes(30);
/// What the other node told, and a round trip, are of no use after so long.
constexpr absl::Duration kForgotten = absl::Minutes(1);
/// So much weight is missing from every confidence: that of one sample is 0.8.
constexpr double kDoubt = 0.25;

double Halvings(absl::Duration time, absl::Duration half_life) {
  return std::exp2(-std::max(0.0, absl::FDivDuration(time, half_life)));
}

}  // namespace

LinkTable::Link& LinkTable::Touch(const std::string& address, absl::Time now) {
  if (links_.size() >= kLinks && !links_.contains(address)) {
    links_.erase(std::min_element(links_.begin(), links_.end(), [](const auto& a, const auto& b) {
      return a.second.measured < b.second.measured;
    }));
  }
  Link& link = links_[address];
  link.measured = now;
  return link;
}

bool LinkTable::AddRate(const std::string& address, Timed arrived, absl::Time now) {
  if (arrived.bytes == 0 || arrived.seconds < kLeastSeconds) return false;
  std::lock_guard lock(mutex_);
  const auto known = links_.find(address);
  if (known != links_.end() && !PastStart(arrived, RttOf(known->second))) return false;
  TakeRate(address, Touch(address, now), arrived, now);
  return true;
}

bool LinkTable::AddPart(const std::string& address, Timed arrived, absl::Time now) {
  if (arrived.bytes == 0) return false;
  std::lock_guard lock(mutex_);
  Link& link = Touch(address, now);
  if (!PastStart(arrived, RttOf(link))) return false;
  if (link.parts.bytes == 0 || now - link.parts_since > kForgotten) {
    link.parts = {};
    link.parts_since = now;
  }
  link.parts.bytes += arrived.bytes;
  link.parts.seconds += arrived.seconds;
  if (link.parts.seconds < kLeastSeconds) return false;
  TakeRate(address, link, std::exchange(link.parts, {}), now);
  return true;
}

void LinkTable::TakeRate(const std::string& address, Link& link, Timed arrived, absl::Time now) {
  const absl::Duration since =
      link.rates.empty() ? absl::ZeroDuration() : now - link.rates.back().at;
  link.rates.push_back({static_cast<double>(arrived.bytes) / arrived.seconds, now});
  if (link.rates.size() > kRates) link.rates.pop_front();
  ++link.samples;
  const double rate = Estimate(address, link, now).bytes_per_s;
  if (link.usual_bytes_per_s == 0) {
    link.usual_bytes_per_s = rate;
  } else {
    // At first the mean of what has come. Of ratios, since links differ by factors.
    const double weight = std::max(1 - std::exp(-absl::FDivDuration(since, kUsual)),
                                   1 / static_cast<double>(link.samples));
    link.usual_bytes_per_s *= std::pow(rate / link.usual_bytes_per_s, std::min(1.0, weight));
  }
}

void LinkTable::AddRtt(const std::string& address, double rtt_s, absl::Time now) {
  if (rtt_s <= 0) return;
  std::lock_guard lock(mutex_);
  Link& link = Touch(address, now);
  link.rtts.push_back({rtt_s, now});
  if (link.rtts.size() > kRtts) link.rtts.pop_front();
}

void LinkTable::OfferRtt(const std::string& address, double rtt_s, absl::Time now) {
  {
    std::lock_guard lock(mutex_);
    const auto found = links_.find(address);
    const bool known = found != links_.end() && !found->second.rtts.empty();
    if (known && now - found->second.rtts.back().at < kForgotten) return;
  }
  AddRtt(address, rtt_s, now);
}

void LinkTable::AddProbe(const std::string& address, uint64_t bytes, bool relayed, absl::Time now) {
  std::lock_guard lock(mutex_);
  Link& link = Touch(address, now);
  link.probe_bytes += bytes;
  link.relayed = relayed;
}

void LinkTable::SetReverse(const std::string& address, double bytes_per_s, absl::Time now) {
  std::lock_guard lock(mutex_);
  const auto found = links_.find(address);
  if (found == links_.end()) return;
  found->second.reverse_bytes_per_s = std::max(0.0, bytes_per_s);
  found->second.reverse_told = now;
}

double LinkTable::RttOf(const Link& link) {
  double least = 0;
  for (const Sample& rtt : link.rtts) least = least == 0 ? rtt.value : std::min(least, rtt.value);
  return least;
}

LinkEstimate LinkTable::Estimate(const std::string& address, const Link& link, absl::Time now) {
  LinkEstimate estimate = {.address = address,
                           .rtt_s = RttOf(link),
                           .usual_bytes_per_s = link.usual_bytes_per_s,
                           .measured = link.measured,
                           .samples = link.samples,
                           .probe_bytes = link.probe_bytes,
                           .relayed = link.relayed};
  if (now - link.reverse_told < kForgotten) estimate.reverse_bytes_per_s = link.reverse_bytes_per_s;
  if (link.rates.empty()) return estimate;
  const absl::Time newest = link.rates.back().at;
  std::vector<std::pair<double, double>> weighted;  // rate, weight
  double whole = 0;
  for (const Sample& rate : link.rates) {
    weighted.emplace_back(rate.value, Halvings(newest - rate.at, kHalfLife));
    whole += weighted.back().second;
  }
  std::sort(weighted.begin(), weighted.end());
  double below = 0;
  for (const auto& [rate, weight] : weighted) {
    below += weight;
    estimate.bytes_per_s = rate;
    if (2 * below >= whole) break;
  }
  double agreeing = 0;
  for (const auto& [rate, weight] : weighted) {
    if (estimate.agrees(rate)) agreeing += weight;
  }
  estimate.confidence = agreeing / (whole + kDoubt) * Halvings(now - newest, absl::Minutes(1));
  return estimate;
}

LinkEstimate LinkTable::Get(const std::string& address, absl::Time now) const {
  std::lock_guard lock(mutex_);
  const auto found = links_.find(address);
  return found == links_.end() ? LinkEstimate{.address = address}
                               : Estimate(address, found->second, now);
}

absl::Time LinkTable::RateMeasured(const std::string& address) const {
  std::lock_guard lock(mutex_);
  const auto found = links_.find(address);
  return found == links_.end() || found->second.rates.empty() ? absl::InfinitePast()
                                                              : found->second.rates.back().at;
}

std::vector<LinkEstimate> LinkTable::List(absl::Time now) const {
  std::lock_guard lock(mutex_);
  std::vector<LinkEstimate> list;
  for (const auto& [address, link] : links_) list.push_back(Estimate(address, link, now));
  return list;
}

}  // namespace tandem::kvstore
