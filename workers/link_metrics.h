// What a worker tells Prometheus about the links from other workers to itself. Called by Worker;
// scraped through server/metrics_server.h. Families: docs/metrics.md.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "kvstore/transfer/link_table.h"

namespace prometheus {
class Registry;
}

namespace tandem::workers {

/// For one thread.
class LinkMetrics {
 public:
  /// `worker`: the name of the one that links lead to.
  LinkMetrics(std::shared_ptr<prometheus::Registry> registry, std::string model_name,
              std::string worker);
  ~LinkMetrics();

  /// All links, again and again; series of those that are not there any more go. `names`: of the
  /// other workers, by data address.
  void Set(const std::vector<kvstore::LinkEstimate>& links,
           const std::map<std::string, std::string>& names, absl::Time now);

 private:
  struct Families;
  const std::unique_ptr<Families> families_;
};

}  // namespace tandem::workers
