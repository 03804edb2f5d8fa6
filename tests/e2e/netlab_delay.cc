// netlab_delay DEVICE DEVICE MILLISECONDS PID_FILE: copies Ethernet frames between two network
// devices, each after a delay. Stands in for the kernel's netem, which many kernels lack; started
// by netlab.sh in the switch's namespace. Writes its process id to the file once it listens.
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <vector>

namespace {

constexpr uint64_t kNever = UINT64_MAX;
constexpr uint64_t kNsPerS = 1'000'000'000;
/// Frames on the way in one direction; a link holds no more than that either.
constexpr size_t kMaxFrames = 200'000;
constexpr int kSocketBufferBytes = 8 << 20;

struct Frame {
  uint64_t due_ns = 0;
  std::vector<char> bytes;
};

uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * kNsPerS + now.tv_nsec;
}

/// A socket that gets all frames that come in by the device, and sends by it.
int OpenDevice(const char* device) {
  const int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, htons(ETH_P_ALL));
  sockaddr_ll address = {};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(if_nametoindex(device));
  if (address.sll_ifindex == 0 ||
      bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    perror(device);
    exit(1);
  }
  packet_mreq all = {};
  all.mr_ifindex = address.sll_ifindex;
  all.mr_type = PACKET_MR_PROMISC;
  setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof(all));
  const int on = 1;
  setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on));
  setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &kSocketBufferBytes, sizeof(kSocketBufferBytes));
  setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &kSocketBufferBytes, sizeof(kSocketBufferBytes));
  return fd;
}

/// One way of the link.
class Direction {
 public:
  Direction(int from, int to, uint64_t delay_ns) : from_(from), to_(to), delay_ns_(delay_ns) {}

  /// Takes what has come in.
  void Receive() {
    static std::vector<char> buffer(65536);
    for (;;) {
      const ssize_t n = recv(from_, buffer.data(), buffer.size(), 0);
      if (n <= 0) return;
      if (frames_.size() < kMaxFrames) {
        frames_.push_back({NowNs() + delay_ns_, {buffer.data(), buffer.data() + n}});
      }
    }
  }

  /// Sends what is due; when the next will be.
  uint64_t Send() {
    const uint64_t now = NowNs();
    for (; !frames_.empty() && frames_.front().due_ns <= now; frames_.pop_front()) {
      const std::vector<char>& bytes = frames_.front().bytes;
      // A link that is down or full loses frames.
      if (send(to_, bytes.data(), bytes.size(), 0) < 0) continue;
    }
    return frames_.empty() ? kNever : frames_.front().due_ns;
  }

 private:
  const int from_, to_;
  const uint64_t delay_ns_;
  std::deque<Frame> frames_;
};

void SetTimer(int timer, uint64_t at_ns) {
  itimerspec when = {};
  if (at_ns != kNever) {
    when.it_value.tv_sec = static_cast<time_t>(at_ns / kNsPerS);
    when.it_value.tv_nsec = static_cast<int64_t>(at_ns % kNsPerS);
  }
  timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: netlab_delay DEVICE DEVICE MILLISECONDS PID_FILE\n");
    return 2;
  }
  const int left = OpenDevice(argv[1]), right = OpenDevice(argv[2]);
  const auto delay_ns = static_cast<uint64_t>(atof(argv[3]) * 1e6);
  // Timers are late by 50 µs otherwise.
  prctl(PR_SET_TIMERSLACK, 1000);
  const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  Direction there(left, right, delay_ns), back(right, left, delay_ns);
  std::ofstream(argv[4]) << getpid() << "\n";
  for (;;) {
    there.Receive();
    back.Receive();
    const uint64_t next = std::min(there.Send(), back.Send());
    SetTimer(timer, next);
    pollfd polled[] = {{left, POLLIN, 0}, {right, POLLIN, 0}, {timer, POLLIN, 0}};
    poll(polled, 3, -1);
    uint64_t expirations;
    if (read(timer, &expirations, sizeof(expirations)) < 0) continue;
  }
}
