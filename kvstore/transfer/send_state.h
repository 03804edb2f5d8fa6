// What the kernel knows of a TCP connection, mostly of its sending direction. Apart, because
// Linux's own header for it and the C library's exclude each other.
#pragma once

namespace tandem::kvstore {

struct SendState {
  /// As TCP has measured it by acknowledgements; 0: not yet.
  double bytes_per_s = 0;
  /// Written and not yet acknowledged.
  double backlog_bytes = 0;
  /// The least round-trip time of the last minutes; 0: not measured.
  double rtt_s = 0;
};

/// Of a connected TCP socket; all 0 where the kernel does not tell.
SendState ReadSendState(int socket);

}  // namespace tandem::kvstore
