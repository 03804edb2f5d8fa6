// Starting a gRPC server and channels the way every part of Tandem does it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem {

struct GrpcServerOptions {
  /// host:port; port 0 takes a free one.
  std::string listen;
  /// Larger messages are refused by gRPC itself, RESOURCE_EXHAUSTED.
  uint64_t max_receive_bytes = 4 << 20;
  std::vector<grpc::Service*> services;
};

struct GrpcServer {
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

/// Starts a server with health checking and reflection. UNAVAILABLE when the address cannot be
/// bound (ports are never shared with another process). The services must outlive the server.
absl::StatusOr<GrpcServer> StartGrpcServer(const GrpcServerOptions& options);

/// A channel that notices a dead peer within seconds, with a connection of its own.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

}  // namespace tandem
