#include "scheduler/core/tenant_order.h"

#include <algorithm>

namespace tandem::scheduler {
namespace {

/// Tenants that are remembered before those are looked for that need not be.
constexpr size_t kMostTenants = 1024;

}  // namespace

TenantOrder::Place TenantOrder::Enter(const std::string& name, double tokens, double weight,
                                      double now_s) {
  if (tenants_.size() >= kMostTenants && !tenants_.contains(name)) Forget(now_s);
  if (name != last_tenant_) {
    other_s_ = last_s_;
    last_tenant_ = name;
  }
  last_s_ = now_s;
  Tenant& tenant = tenants_[name];
  const bool about = now_s - tenant.last_s < kAboutS;
  const double tag = std::max(tenant.next_tag, virtual_time_ - (about ? kCredit / weight : 0));
  tenant = {.next_tag = tag + tokens / weight, .last_s = now_s};
  last_tag_ = std::max(last_tag_, tenant.next_tag);
  return {.tag = tag, .yields = now_s - other_s_ < kAboutS && tag >= virtual_time_};
}

void TenantOrder::Begin(double tag) { virtual_time_ = std::max(virtual_time_, tag); }

void TenantOrder::Idle(double now_s) {
  virtual_time_ = std::max(virtual_time_, last_tag_);
  const auto last = tenants_.find(last_tenant_);
  if (last != tenants_.end() && now_s - other_s_ >= kAboutS) {
    last->second.next_tag = kLongAgo;
  }
}

/// Strangers by now, that have not had more than others; if those are too few, everybody: among so
/// many tenants nobody floods.
void TenantOrder::Forget(double now_s) {
  absl::erase_if(tenants_, [&](const auto& each) {
    return now_s - each.second.last_s >= kAboutS && each.second.next_tag <= virtual_time_;
  });
  if (tenants_.size() >= kMostTenants) tenants_.clear();
}

}  // namespace tandem::scheduler
