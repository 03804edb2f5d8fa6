#include "kvstore/transfer/send_state.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>

namespace tandem::kvstore {

SendState ReadSendState(int socket) {
  constexpr int kIpProtoTcp = 6;  // <netinet/in.h> would bring the other tcp_info
  SendState state;
  tcp_info info{};
  socklen_t size = sizeof(info);
  if (getsockopt(socket, kIpProtoTcp, TCP_INFO, &info, &size) == 0 &&
      size >= offsetof(tcp_info, tcpi_delivery_rate) + sizeof(info.tcpi_delivery_rate)) {
    state.bytes_per_s = static_cast<double>(info.tcpi_delivery_rate);
    state.starved = info.tcpi_delivery_rate_app_limited != 0;
    constexpr uint32_t kUnknown = ~uint32_t{0};
    if (info.tcpi_min_rtt != kUnknown) state.rtt_s = info.tcpi_min_rtt * 1e-6;
  }
  int queued = 0;
  if (ioctl(socket, SIOCOUTQ, &queued) == 0) state.backlog_bytes = queued;
  return state;
}

}  // namespace tandem::kvstore
