// A load's conversation with another node: asks what it holds, and then for chunk after chunk, so
// that the link never idles and each level is chosen by what the link carried just before.
#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>

#include "base/log.h"
#include "base/status.h"
#include "kvstore/loading/loader.h"

namespace tandem::kvstore {
namespace {

namespace asio = boost::asio;

/// One that comes, and one more so that the link does not idle for a round trip in between.
constexpr size_t kAskedAtOnce = 2;
/// How often bytes are counted, so that a link that stalls shows.
constexpr std::chrono::milliseconds kCountInterval{4};
/// A link that was busy for less tells nothing.
constexpr double kLeastMeasuredS = 0.002;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

asio::awaitable<void> Load::LoadFromPeer(std::shared_ptr<Load> self, size_t holder) {
  Loader& loader = *self->loader_;
  const std::string& address = self->request_.holders[holder].address;
  ChunkSession session(loader.peers(), address);
  loader.List(session);
  RateEstimator rate(loader.speeds().Join(address));
  absl::Status status;
  try {
    using asio::experimental::awaitable_operators::operator||;
    const auto first =
        co_await (self->Converse(session, holder, rate) || self->CountBytes(session, holder, rate));
    status = std::get<0>(first);
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
  }
  const double share = rate.observed_s() > kLeastMeasuredS ? rate.bytes_per_s() : 0;
  const double link = loader.speeds().Leave(address, share);
  loader.Unlist(session);
  self->HolderGone(holder);
  if (share > 0) loader.observer().LinkMeasured(address, link);
  if (!status.ok() && !absl::IsCancelled(status)) {
    loader.observer().PeerFailed(status);
    Log(spdlog::level::warn, *self->request_.context, "kv load",
        "peer={} failed=\"{}\"; what it held is computed", address, status.ToString());
  }
  co_await session.End(std::move(status));
}

asio::awaitable<void> Load::CountBytes(ChunkSession& session, size_t holder, RateEstimator& rate) {
  asio::steady_timer timer(loader_->io());
  for (;;) {
    rate.Observe(Now(), session.bytes_read());
    SetRate(holder, rate.bytes_per_s(), static_cast<double>(session.bytes_of_answer()));
    request_.on_progress();
    timer.expires_after(kCountInterval);
    auto [error] = co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
    if (error) co_return;
  }
}

asio::awaitable<absl::Status> Load::Converse(ChunkSession& session, size_t holder,
                                             RateEstimator& rate) {
  CO_RETURN_IF_ERROR(co_await FindAll(session, holder));
  rate.SetRoundTrip(session.rtt_s());
  std::deque<std::pair<size_t, Level>> coming;
  for (;;) {
    while (coming.size() < kAskedAtOnce) {
      const auto next = NextToAsk(holder, rate.bytes_per_s());
      if (!next) break;
      coming.push_back(*next);
      rate.Resume(Now(), session.bytes_read());
      const ChunkKey key{.id = request_.ids[next->first], .level = next->second};
      CO_RETURN_IF_ERROR(co_await session.Ask(key));
    }
    if (coming.empty()) co_return absl::OkStatus();
    const auto [index, level] = coming.front();
    coming.pop_front();
    CO_RETURN_IF_ERROR(co_await ReceiveOne(session, index, level));
    rate.Observe(Now(), session.bytes_read());
    if (coming.empty()) rate.Pause(Now(), session.bytes_read());
  }
}

asio::awaitable<absl::Status> Load::FindAll(ChunkSession& session, size_t holder) {
  const LoadRequest::Holder& range = request_.holders[holder];
  const size_t end =
      std::min<uint64_t>(request_.ids.size(), uint64_t{range.first_chunk} + range.n_chunks);
  size_t at = std::max<size_t>(range.first_chunk, request_.first_chunk);
  while (at < end) {
    const size_t n = std::min(end - at, kMaxFindIds);
    CO_ASSIGN_OR_RETURN(const std::vector<LevelBytes> held,
                        co_await session.Find(std::span(request_.ids).subspan(at, n)));
    Found(holder, at, held);
    at += n;
  }
  SearchedBy(holder);
  co_return absl::OkStatus();
}

asio::awaitable<absl::Status> Load::ReceiveOne(ChunkSession& session, size_t index, Level level) {
  const ChunkKey key{.id = request_.ids[index], .level = level};
  absl::StatusOr<StoredChunkPtr> chunk = co_await session.Receive(key);
  if (chunk.ok()) {
    Decode(index, *std::move(chunk), Origin::kPeer);
    co_return absl::OkStatus();
  }
  Absent(index);
  if (absl::IsNotFound(chunk.status())) co_return absl::OkStatus();
  if (!absl::IsDataLoss(chunk.status())) co_return chunk.status();
  loader_->observer().ChunkRefused(Origin::kPeer, chunk.status());
  co_return session.in_step() ? absl::OkStatus() : chunk.status();
}

void Load::Found(size_t holder, size_t first, const std::vector<LevelBytes>& held) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < held.size(); ++i) {
    Chunk& chunk = chunks_[first + i];
    if (chunk.state != State::kSought && chunk.state != State::kHeld) continue;
    for (const Level level : codec::kAllLevels) {
      const uint64_t bytes = held[i][static_cast<size_t>(level)];
      if (bytes == 0 || !Usable(level)) continue;
      chunk.held[static_cast<size_t>(level)] = bytes;
      chunk.holders |= uint32_t{1} << holder;
      chunk.state = State::kHeld;
    }
  }
}

Level Load::ChooseFor(const Chunk& chunk, const LoadState& state) const {
  const auto wanted = static_cast<int>(ChooseLevel(state, request_.floor));
  // Not every chunk is held at every level: a finer one does as well, and a coarser one, still
  // within the floor, is better than none.
  for (int level = wanted; level >= 0; --level) {
    if (chunk.held[level] > 0) return static_cast<Level>(level);
  }
  for (int level = wanted + 1; level < static_cast<int>(chunk.held.size()); ++level) {
    if (chunk.held[level] > 0) return static_cast<Level>(level);
  }
  return request_.floor;
}

std::optional<std::pair<size_t, Level>> Load::NextToAsk(size_t holder, double bytes_per_s) {
  std::lock_guard lock(mutex_);
  for (size_t i = chunks_.size(); i-- > 0 && !stopped_;) {
    Chunk& chunk = chunks_[i];
    if (chunk.state != State::kHeld || ((chunk.holders >> holder) & 1) == 0) continue;
    const LoadState state = StateLocked(bytes_per_s);
    chunk.level = ChooseFor(chunk, state);
    chunk.state = State::kComing;
    chunk.asked = holder;
    chunk.asked_bytes = chunk.held[static_cast<size_t>(chunk.level)];
    Log(spdlog::level::debug, *request_.context, "kv adapter",
        "chunk={} choice={} bytes={} bytes_per_s={:.0f} left_s={:.4f} chunks_left={}", i,
        codec::LevelName(chunk.level), chunk.asked_bytes, bytes_per_s, state.left_s,
        state.n_chunks);
    return std::pair(i, chunk.level);
  }
  return std::nullopt;
}

void Load::HolderGone(size_t holder) {
  {
    std::lock_guard lock(mutex_);
    flows_.erase(holder);
    for (Chunk& chunk : chunks_) {
      chunk.holders &= ~(uint32_t{1} << holder);
      const bool lost = (chunk.state == State::kHeld && chunk.holders == 0) ||
                        (chunk.state == State::kComing && chunk.asked == holder);
      if (lost) chunk.state = State::kAbsent;
    }
  }
  SearchedBy(holder);
  request_.on_progress();
}

}  // namespace tandem::kvstore
