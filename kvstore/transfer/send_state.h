// What the kernel knows of a TCP connection, mostly of its sending direction. Apart, because
// Linux's own header for it and the C library's exclude each other.
#pragma once

namespace tandem::kvstore {

struct SendState {
  /// As TCP has measured it by acknowledgements; 0: not yet.
  double bytes_per_s = 0;
  /// It had less to send than the link takes: the rate is that of a burst, or of nothing much.
  bool starved = false;
  /// Written and not yet acknowledged.
  double backlog_bytes = 0;
  /// The least round-trip time of the last minutes; 0: not measured.
  double rtt_s = 0;
};

/// Of a connected TCP socket; all 0 where the kernel does not tell.
SendState ReadSendState(int socket);

/// What to believe of a connection's rate, reading after reading. Not thread-safe.
class BelievedRate {
 public:
  /// Buffers on the way take a small burst at any speed. So what was measured while there was
  /// little to send only doubles what is believed; nothing was believed before: then it counts as
  /// 0.
  double Update(const SendState& state) {
    const double most = state.starved ? 2 * bytes_per_s_ : state.bytes_per_s;
    if (state.bytes_per_s > 0) bytes_per_s_ = state.bytes_per_s < most ? state.bytes_per_s : most;
    return bytes_per_s_;
  }

 private:
  double bytes_per_s_ = 0;
};

}  // namespace tandem::kvstore
