// A context over one plain TCP connection, chunk after chunk: what somebody writes who has no
// Tandem. Received, decoded and put into the engine in three threads, side by side.
#pragma once

#include <map>
#include <thread>
#include <vector>

#include "tests/bench/kv-load/context.h"
#include "tests/bench/kv-load/plain_formats.h"

namespace tandem::bench {

/// Sends all chunks in the format that a byte asks for; one connection at a time, for ever.
class PlainServer {
 public:
  using Chunks = std::map<Format, std::vector<std::vector<uint8_t>>>;
  /// Listens on all addresses. The process ends when it cannot.
  explicit PlainServer(Chunks chunks);
  uint16_t port() const { return port_; }

 private:
  void Serve(int connection) const;
  const Chunks chunks_;
  int listener_ = -1;
  uint16_t port_ = 0;
};

class PlainClient {
 public:
  /// Connects. `codec` and `engine` outlive it.
  static absl::StatusOr<std::unique_ptr<PlainClient>> Connect(const std::string& host,
                                                              uint16_t port,
                                                              const PlainCodec* codec,
                                                              workers::Engine* engine);
  ~PlainClient();

  /// Fetches `n_chunks` chunks and appends them to the engine's sequence 0, which must be empty.
  absl::Status Load(Format format, uint32_t n_chunks);

 private:
  PlainClient(int connection, const PlainCodec* codec, workers::Engine* engine)
      : connection_(connection), codec_(codec), engine_(engine) {}
  absl::StatusOr<std::vector<uint8_t>> ReceiveOne();
  absl::StatusOr<std::unique_ptr<workers::Engine::IncomingKv>> DecodeOne(
      Format format, uint32_t index, std::span<const uint8_t> bytes);

  const int connection_;
  const PlainCodec* const codec_;
  workers::Engine* const engine_;
};

}  // namespace tandem::bench
