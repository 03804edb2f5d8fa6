#include "scheduler/core/tenant_order.h"

#include <algorithm>

namespace tandem::scheduler {
namespace {

/// Tenants that are remembered before those are looked for that need not be.
constexpr size_t kMostTenants = 1024;

}  // namespace

TenantOrder::Place TenantOrder::Enter(const std::string& tenant, double tokens, double weight) {
  if (next_tag_.size() >= kMostTenants && !next_tag_.contains(tenant)) Forget();
  const double earliest = virtual_time_ - kCredit / weight;
  double& next = next_tag_.try_emplace(tenant, earliest).first->second;
  const double tag = std::max(next, earliest);
  next = tag + tokens / weight;
  if (tenant == last_tenant_) {
    in_a_row_ = std::min(in_a_row_ + 1, kExpected);
  } else {
    in_a_row_ = last_tenant_.empty() ? kExpected : 0;
    last_tenant_ = tenant;
  }
  return {.tag = tag, .yields = in_a_row_ < kExpected && tag >= virtual_time_};
}

void TenantOrder::Begin(double tag) { virtual_time_ = std::max(virtual_time_, tag); }

/// Those whose next prompt would get the same tag as a stranger's; if that is nobody, everybody:
/// among so many tenants nobody floods.
void TenantOrder::Forget() {
  absl::erase_if(next_tag_,
                 [this](const auto& each) { return each.second <= virtual_time_ - kCredit; });
  if (next_tag_.size() >= kMostTenants) next_tag_.clear();
}

}  // namespace tandem::scheduler
