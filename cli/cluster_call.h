// One call of a router's cluster service, for sub-commands that need no more.
#pragma once

#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/client.h"
#include "tandem/v1/cluster.grpc.pb.h"

namespace tandem::cli {

/// How long the router may take to answer.
inline constexpr absl::Duration kClusterTimeout = absl::Seconds(10);

/// Calls `method` and fills `response`. The call's error, as WithHint tells it.
template <typename Request, typename Response>
absl::Status CallCluster(const std::string& router, const Request& request, Response& response,
                         grpc::Status (v1::ClusterService::Stub::*method)(grpc::ClientContext*,
                                                                          const Request&,
                                                                          Response*)) {
  const auto channel = Connect(router);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kClusterTimeout));
  const auto stub = v1::ClusterService::NewStub(channel);
  const grpc::Status status = (stub.get()->*method)(&context, request, &response);
  return status.ok() ? absl::OkStatus() : WithHint(status, router, *channel, context);
}

/// The same. Returns kOk, or reports the error and returns what to exit with.
template <typename Request, typename Response>
int AskCluster(const std::string& router, const Terminal& terminal, const Request& request,
               Response& response,
               grpc::Status (v1::ClusterService::Stub::*method)(grpc::ClientContext*,
                                                                const Request&, Response*)) {
  const absl::Status status = CallCluster(router, request, response, method);
  return status.ok() ? kOk : ReportFailure(status, terminal);
}

}  // namespace tandem::cli
