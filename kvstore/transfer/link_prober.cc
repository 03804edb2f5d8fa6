#include "kvstore/transfer/link_prober.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cmath>
#include <map>
#include <random>
#include <utility>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/status.h"
#include "kvstore/transfer/address.h"
#include "kvstore/transfer/peer_pool.h"
#include "kvstore/transfer/task_group.h"
#include "kvstore/transfer/wire.h"

namespace tandem::kvstore {
namespace {

namespace asio = boost::asio;

/// Between two visits of a peer, and all peers' visits together.
constexpr absl::Duration kInterval = absl::Milliseconds(2500);
constexpr absl::Duration kLeastPause = absl::Milliseconds(50);
constexpr absl::Duration kAfterFailure = absl::Seconds(5);
constexpr absl::Duration kTimeout = absl::Seconds(2);
/// How long a link should be busy: longer than a token bucket's burst, and than TCP needs to start;
/// no longer, so that with a hundredth of the time there are probes enough to see a change soon.
constexpr double kBusyS = 0.04, kBusyRtts = 7;
constexpr uint32_t kLeastFills = 3, kMostFills = 2048, kGrowth = 4;
/// Of so many, none was waited for: it is the reader that is slow, and no other will get more.
constexpr uint32_t kManyFills = 256;
/// A link that has become so much slower is told so by what has come; the rest is not waited for.
constexpr double kPatience = 1.2, kPatienceS = 0.005, kUnknownPatienceS = 1;
/// Kept for the probes that tell whether a link has changed when one says so, once it has been
/// measured a few times; so many follow at once, then it is others' turn: some links never agree.
constexpr double kReserveS = 0.045;
constexpr uint64_t kFewSamples = 3;
constexpr uint32_t kConfirmations = 2;
/// Of the share, the rest is for what is not counted: acknowledgements, lost packets.
constexpr double kOwnUse = 0.9;
/// Headers of frames, TCP, IP and Ethernet, by the bytes that they carry.
constexpr double kOverhead = 1.06;

const std::vector<uint8_t>& FillFrame() {
  static const std::vector<uint8_t> frame = [] {
    std::vector<uint8_t> body(wire::kFillBytes);
    std::mt19937 random(1);
    for (uint8_t& byte : body) byte = static_cast<uint8_t>(random());
    std::vector<uint8_t> whole = wire::EncodeFrame(v1::FRAME_TYPE_FILL, v1::Fill(), body).value();
    whole.insert(whole.end(), body.begin(), body.end());
    return whole;
  }();
  return frame;
}

double FillSeconds(uint32_t fills, double bytes_per_s) {
  const double bytes = static_cast<double>(fills) * wire::kFillBytes;
  return bytes_per_s > 0 ? kOverhead * bytes / bytes_per_s : 0;
}

double BusySeconds(double rtt_s) { return std::max(kBusyS, kBusyRtts * rtt_s); }

/// FILL frames that keep the link busy for long enough.
uint32_t FillsFor(const LinkEstimate& link) {
  const double bytes = link.bytes_per_s * BusySeconds(link.rtt_s);
  return static_cast<uint32_t>(
      std::clamp<double>(std::round(bytes / wire::kFillBytes), kLeastFills, kMostFills));
}

bool IsFill(const Frame& frame) {
  return frame.header.type == v1::FRAME_TYPE_FILL && frame.header.body_bytes == wire::kFillBytes;
}

absl::Status Unexpected(const Frame& frame) {
  return absl::FailedPreconditionError(wire::UnexpectedFrame(frame.header.type, "in a probe"));
}

}  // namespace

/// What a prober is besides its handle; its coroutines keep it alive. Io thread only, but for the
/// constructor, SetPeers and Stop.
class LinkProber::Loop : public std::enable_shared_from_this<Loop> {
 public:
  Loop(asio::io_context& io, Options options)
      : options_(std::move(options)),
        tasks_(std::make_shared<TaskGroup>(io)),
        pool_(std::make_shared<PeerPool>(io, PeerPool::Options{.chunks_only = true,
                                                               .connect_timeout = kTimeout,
                                                               .silence_timeout = kTimeout})),
        wake_(io),
        budget_(kOwnUse * options_.share, absl::Now()),
        scratch_(wire::kFillBytes) {}

  void Start() { tasks_->Spawn(Run(shared_from_this())); }
  void SetPeers(std::vector<std::string> addresses);
  void Stop();

 private:
  struct Peer {
    /// When it may be visited again at all, and when for filler.
    absl::Time ping_at = absl::InfinitePast(), fill_at = absl::InfinitePast();
    /// After a probe that was too short to tell: how much the next one asks for, and how fast the
    /// link seemed to be. 0: as the table says.
    uint32_t fills = 0;
    double seemed_bytes_per_s = 0;
    /// So many of the last probes, one after the other, did not agree with what was known.
    uint32_t in_doubt = 0;
    /// The next one comes at once.
    bool unsettled() const { return in_doubt > 0 && in_doubt <= kConfirmations; }
  };
  struct Step {
    std::string address;
    absl::Time at = absl::InfiniteFuture();
    /// FILL frames to ask for, and how long they should take; 0 for unknown.
    uint32_t fills = 0;
    double seconds = 0;
  };
  /// What one PROBE has brought.
  struct Answer {
    uint32_t fills = 0;
    double seconds = 0;
    Timed tail;
    /// Fewer were waited for than were coming.
    bool cut = false;
    /// That the connection has brought in all.
    uint64_t bytes = 0;
  };
  static asio::awaitable<void> Run(std::shared_ptr<Loop> self);
  bool OnOwnHost(const std::string& address) const;
  /// Filler for the peer whose bandwidth was measured longest ago, or before that is possible a
  /// visit for the round trip alone.
  Step Next(absl::Time now);
  asio::awaitable<absl::Status> Visit(Step step);
  asio::awaitable<absl::StatusOr<Answer>> Ask(PeerUse& use, Step step);
  asio::awaitable<absl::Status> ReadFills(FrameSocket& peer, double limit_s, Answer& answer);
  /// What an answer says of the link, and how long it kept it busy.
  void Take(const Step& step, const Answer& answer);
  void PutOff(const std::string& address, absl::Duration pings, absl::Duration fills);

  const Options options_;
  const std::shared_ptr<TaskGroup> tasks_;
  const std::shared_ptr<PeerPool> pool_;
  asio::steady_timer wake_;
  ProbeBudget budget_;
  std::vector<uint8_t> scratch_;
  bool stopped_ = false;
  std::map<std::string, Peer> peers_;
  PeerUse use_;
};

void LinkProber::Loop::SetPeers(std::vector<std::string> addresses) {
  tasks_->Post([self = shared_from_this(), addresses = std::move(addresses)] {
    std::map<std::string, Peer> peers;
    for (const std::string& address : addresses) {
      if (address == self->options_.address || self->OnOwnHost(address)) continue;
      const auto known = self->peers_.find(address);
      peers[address] = known != self->peers_.end() ? known->second : Peer();
    }
    self->peers_ = std::move(peers);
    self->wake_.cancel();
  });
}

bool LinkProber::Loop::OnOwnHost(const std::string& address) const {
  if (!options_.skip_own_host) return false;
  const auto own = ParseAddress(options_.address), other = ParseAddress(address);
  return own.ok() && other.ok() && own->host == other->host;
}

void LinkProber::Loop::Stop() {
  tasks_->Post([self = shared_from_this()] {
    self->stopped_ = true;
    self->use_.Stop(absl::UnavailableError("the worker is stopping"));
    self->pool_->Shutdown();
    self->wake_.cancel();
  });
  tasks_->Drain();
}

asio::awaitable<void> LinkProber::Loop::Run(std::shared_ptr<Loop> self) {
  while (!self->stopped_) {
    const absl::Time now = absl::Now();
    const Step step = self->Next(now);
    if (step.at > now) {
      const absl::Duration pause = std::clamp(step.at - now, absl::Milliseconds(1), absl::Hours(1));
      self->wake_.expires_after(absl::ToChronoNanoseconds(pause));
      co_await self->wake_.async_wait(asio::as_tuple(asio::use_awaitable));
      continue;
    }
    const absl::Duration round = kLeastPause * static_cast<double>(self->peers_.size());
    self->PutOff(step.address, std::max(kInterval, round),
                 step.fills > 0 ? kInterval : absl::ZeroDuration());
    const absl::Status status = co_await self->Visit(step);
    if (status.ok()) continue;
    spdlog::debug("link probe peer={} failed=\"{}\"", step.address, status.ToString());
    self->PutOff(step.address, kAfterFailure, kAfterFailure);
  }
}

void LinkProber::Loop::PutOff(const std::string& address, absl::Duration pings,
                              absl::Duration fills) {
  const auto peer = peers_.find(address);
  if (peer == peers_.end()) return;
  const absl::Time now = absl::Now();
  peer->second.ping_at = std::max(peer->second.ping_at, now + pings);
  peer->second.fill_at = std::max(peer->second.fill_at, now + fills);
}

LinkProber::Loop::Step LinkProber::Loop::Next(absl::Time now) {
  Step ping, fill;
  absl::Time oldest = absl::InfiniteFuture();
  for (const auto& [address, peer] : peers_) {
    if (peer.ping_at < ping.at) ping = {.address = address, .at = peer.ping_at};
    const absl::Time measured =
        peer.unsettled() ? absl::InfinitePast() : options_.links->RateMeasured(address);
    const absl::Time at = std::max(peer.fill_at, measured + kInterval);
    if (at <= now ? measured < oldest || fill.at > now : at < fill.at) {
      fill = {.address = address, .at = at};
      oldest = measured;
    }
  }
  if (fill.address.empty()) return ping;
  const Peer& peer = peers_.at(fill.address);
  const LinkEstimate link = options_.links->Get(fill.address, now);
  fill.fills = peer.fills > 0 ? peer.fills : FillsFor(link);
  fill.seconds = FillSeconds(fill.fills, std::max(link.bytes_per_s, peer.seemed_bytes_per_s));
  const double reserve_s = link.samples < kFewSamples || peer.unsettled() ? 0 : kReserveS;
  fill.at = std::max(fill.at, now + budget_.Until(fill.seconds + reserve_s, now));
  return fill.at <= ping.at || fill.at <= now ? fill : ping;
}

asio::awaitable<absl::Status> LinkProber::Loop::Visit(Step step) {
  use_ = {.address = step.address};
  absl::Status status = co_await pool_->Connect(use_);
  if (status.ok() && use_.answers_probes) {
    const absl::StatusOr<Answer> answer = co_await Ask(use_, step);
    status = answer.status();
    if (answer.ok()) Take(step, *answer);
  }
  pool_->Drop(use_);
  co_return status;
}

void LinkProber::Loop::Take(const Step& step, const Answer& answer) {
  const absl::Time now = absl::Now();
  Timed tail = answer.tail;
  if (tail.bytes == 0 && answer.fills >= kManyFills) {
    tail = {answer.fills * wire::kFillBytes, answer.seconds};
  }
  const LinkEstimate before = options_.links->Get(step.address, now);
  const bool told = options_.links->AddRate(step.address, tail, now);
  // By what is known now: a link that has become slower was busy for longer.
  const LinkEstimate link = options_.links->Get(step.address, now);
  const double bytes = static_cast<double>(answer.bytes);
  const double busy_s = link.bytes_per_s > 0 ? kOverhead * bytes / link.bytes_per_s : 0;
  budget_.Spend(told || answer.fills == 0 ? std::max(busy_s, answer.cut ? answer.seconds : 0)
                                          : answer.seconds,
                now);
  const auto peer = peers_.find(step.address);
  if (answer.fills == 0 || peer == peers_.end()) return;
  spdlog::debug("link probe peer={} fills={}/{} seconds={:.6f} tail_bytes={} tail_seconds={:.6f}",
                step.address, answer.fills, step.fills, answer.seconds, tail.bytes, tail.seconds);
  peer->second.fills = 0;
  peer->second.seemed_bytes_per_s = 0;
  const double sample = told ? static_cast<double>(tail.bytes) / tail.seconds : 0;
  const bool agrees = before.agrees(sample) && link.agrees(sample);
  peer->second.in_doubt = told && before.bytes_per_s > 0 && !agrees ? peer->second.in_doubt + 1 : 0;
  if (peer->second.unsettled()) peer->second.fill_at = now;
  // Long enough, and yet it did not tell: this end was too busy to see it.
  if (told || answer.seconds >= BusySeconds(link.rtt_s)) return;
  peer->second.fills = std::min(kMostFills, step.fills * kGrowth);
  peer->second.seemed_bytes_per_s = bytes / answer.seconds;
  peer->second.fill_at = now;
}

asio::awaitable<absl::StatusOr<LinkProber::Loop::Answer>> LinkProber::Loop::Ask(PeerUse& use,
                                                                                Step step) {
  FrameSocket& peer = *use.peer;
  v1::Probe probe;
  probe.set_fills(step.fills);
  probe.set_data_address(options_.address);
  probe.set_bytes_per_s(options_.links->Get(use.address, absl::Now()).bytes_per_s);
  probe.set_seconds(step.seconds);
  CO_RETURN_IF_ERROR(co_await peer.WriteFrame(v1::FRAME_TYPE_PROBE, probe, kTimeout));
  CO_ASSIGN_OR_RETURN(const Frame frame, co_await peer.ReadFrame(kTimeout));
  if (frame.header.type != v1::FRAME_TYPE_PROBED) co_return Unexpected(frame);
  v1::Probed probed;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(frame.meta, probed));
  Answer answer;
  answer.fills = std::min(probed.fills(), step.fills);
  options_.links->AddRtt(use.address, peer.send_state().rtt_s, absl::Now());
  if (answer.fills > 0) {
    const double limit_s =
        step.seconds > 0 ? kPatience * step.seconds + kPatienceS : kUnknownPatienceS;
    const Stopwatch took;
    peer.StartTiming();
    const absl::Status read = co_await ReadFills(peer, limit_s, answer);
    answer.seconds = took.seconds();
    answer.tail = peer.StopTiming();
    if (!read.ok()) {
      budget_.Spend(answer.seconds, absl::Now());
      co_return read;
    }
    if (!answer.cut) {
      CO_RETURN_IF_ERROR(co_await peer.WriteFrame(v1::FRAME_TYPE_DONE, v1::Done(), kTimeout));
    }
  }
  const bool relayed = probed.asker() != peer.local() || probed.server() != peer.peer();
  options_.links->AddProbe(use.address, answer.fills * wire::kFillBytes, relayed, absl::Now());
  answer.bytes = peer.bytes_read();
  co_return answer;
}

asio::awaitable<absl::Status> LinkProber::Loop::ReadFills(FrameSocket& peer, double limit_s,
                                                          Answer& answer) {
  const Stopwatch took;
  for (uint32_t i = 0; i < answer.fills; ++i) {
    CO_ASSIGN_OR_RETURN(const Frame frame, co_await peer.ReadFrame(kTimeout));
    if (!IsFill(frame)) co_return Unexpected(frame);
    std::vector<std::span<uint8_t>> spans(1, std::span<uint8_t>(scratch_));
    CO_RETURN_IF_ERROR(co_await peer.ReadBody(std::move(spans), kTimeout));
    if (i + 1 == answer.fills || took.seconds() < limit_s) continue;
    answer.fills = i + 1;
    answer.cut = true;
  }
  co_return absl::OkStatus();
}

LinkProber::LinkProber(asio::io_context& io, Options options)
    : loop_(std::make_shared<Loop>(io, std::move(options))) {
  loop_->Start();
}

LinkProber::~LinkProber() { Stop(); }

void LinkProber::SetPeers(std::vector<std::string> addresses) {
  loop_->SetPeers(std::move(addresses));
}

void LinkProber::Stop() { loop_->Stop(); }

asio::awaitable<absl::Status> AnswerProbe(FrameSocket& peer, const Frame& frame,
                                          ProbeBudget& budget, LinkTable* links,
                                          absl::Duration limit) {
  v1::Probe probe;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(frame.meta, probe));
  if (links != nullptr) links->SetReverse(probe.data_address(), probe.bytes_per_s(), absl::Now());
  const uint32_t wanted = std::min(probe.fills(), kMostFills);
  const bool allowed = budget.Until(probe.seconds(), absl::Now()) == absl::ZeroDuration();
  v1::Probed probed;
  probed.set_fills(allowed ? wanted : 0);
  probed.set_asker(peer.peer());
  probed.set_server(peer.local());
  CO_RETURN_IF_ERROR(co_await peer.WriteFrame(v1::FRAME_TYPE_PROBED, probed, limit));
  if (probed.fills() == 0) co_return absl::OkStatus();
  // What the asker says of the link is not relied upon: it is measured how long it is busy.
  const Stopwatch took;
  absl::Status status;
  for (uint32_t i = 0; i < probed.fills() && status.ok(); ++i) {
    status = co_await peer.Write(FillFrame(), {}, limit);
  }
  if (status.ok()) {
    const auto done = co_await peer.ReadFrame(limit);
    status =
        done.ok() && done->header.type != v1::FRAME_TYPE_DONE ? Unexpected(*done) : done.status();
  }
  budget.Spend(std::max(0.0, took.seconds() - peer.send_state().rtt_s), absl::Now());
  co_return status;
}

}  // namespace tandem::kvstore
