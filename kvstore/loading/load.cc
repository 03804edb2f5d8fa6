// One load: what is found where, asked for, decoded and handed to the engine. The part that talks
// to other nodes is in load_from_peer.cc.
#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "kvstore/loading/loader.h"

namespace tandem::kvstore {
namespace {

/// Of the time that computing a chunk takes: how long a Redis's answer is waited for.
constexpr double kSharedPatience = 0.25;

}  // namespace

Load::Load(std::shared_ptr<Loader> loader, LoadRequest request)
    : loader_(std::move(loader)),
      request_(std::move(request)),
      raw_chunk_bytes_(loader_->codec().layout().BytesPerToken() * request_.chunk_tokens),
      chunks_(request_.ids.size()) {
  for (size_t i = 0; i < request_.first_chunk; ++i) chunks_[i].state = State::kTaken;
}

bool Load::Usable(Level level) const {
  return level <= request_.floor && loader_->codec().CheckLevel(level).ok();
}

double Load::LeftSeconds() const { return absl::ToDoubleSeconds(request_.ready_by - absl::Now()); }

void Load::Begin() {
  LoadLocal();
  bool complete = false;
  {
    std::lock_guard lock(mutex_);
    complete = std::none_of(chunks_.begin(), chunks_.end(),
                            [](const Chunk& chunk) { return chunk.state == State::kSought; });
    if (!complete) {
      for (size_t i = 0; i < std::min(request_.holders.size(), kShared); ++i) searching_.insert(i);
    }
  }
  if (complete || request_.holders.empty()) return SeekShared();
  for (size_t i = 0; i < std::min(request_.holders.size(), kShared); ++i) {
    if (!loader_->tasks().Spawn(LoadFromPeer(shared_from_this(), i))) SearchedBy(i);
  }
}

void Load::LoadLocal() {
  if (loader_->store() == nullptr) return;
  const auto held = loader_->store()->Find(request_.ids);
  for (size_t i = request_.first_chunk; i < held.size(); ++i) {
    for (const Level level : codec::kAllLevels) {
      if (((held[i].levels >> static_cast<int>(level)) & 1) == 0 || !Usable(level)) continue;
      {
        std::lock_guard lock(mutex_);
        chunks_[i].state = State::kDecoding;
      }
      loader_->StoreAsked();
      loader_->store()->Fetch({.id = request_.ids[i], .level = level},
                              [self = shared_from_this(), i](absl::StatusOr<Store::Fetched> found) {
                                if (found.ok()) {
                                  self->Decode(i, found->chunk, found->origin);
                                } else {
                                  self->Absent(i);
                                }
                                self->loader_->StoreAnswered();
                              });
      break;
    }
  }
}

void Load::SearchedBy(size_t holder) {
  {
    std::lock_guard lock(mutex_);
    if (searching_.erase(holder) == 0 || !searching_.empty()) return;
  }
  SeekShared();
}

void Load::SeekShared() {
  // The smallest first: what a Redis costs is bytes.
  std::vector<std::pair<size_t, ChunkKey>> wanted;
  if (loader_->store() != nullptr) {
    std::lock_guard lock(mutex_);
    for (size_t i = chunks_.size(); i-- > 0 && !stopped_;) {
      if (chunks_[i].state != State::kSought) continue;
      for (size_t l = codec::kAllLevels.size(); l-- > 0;) {
        const auto level = static_cast<Level>(l);
        if (Usable(level)) wanted.push_back({i, {.id = request_.ids[i], .level = level}});
      }
    }
  }
  if (wanted.empty()) return CloseSearch();
  std::vector<ChunkKey> keys;
  for (const auto& [unused, key] : wanted) keys.push_back(key);
  loader_->StoreAsked();
  loader_->store()->FindShared(
      std::move(keys), [self = shared_from_this(), wanted](const std::vector<bool>& there) {
        std::vector<std::pair<size_t, ChunkKey>> found;
        {
          std::lock_guard lock(self->mutex_);
          for (size_t i = 0; i < wanted.size() && i < there.size(); ++i) {
            Chunk& chunk = self->chunks_[wanted[i].first];
            if (!there[i] || chunk.state != State::kSought) continue;
            chunk.state = State::kComing;
            chunk.asked = kShared;
            chunk.level = wanted[i].second.level;
            // Redis does not tell sizes; a guess that keeps the adapter's sums sensible.
            chunk.asked_bytes = self->raw_chunk_bytes_ / (chunk.level == Level::kLossless ? 1 : 6);
            found.push_back(wanted[i]);
          }
          self->flows_[kShared].bytes_per_s = self->loader_->options().initial_bytes_per_s;
        }
        self->CloseSearch();
        self->FetchShared(std::move(found));
        self->loader_->StoreAnswered();
      });
}

void Load::FetchShared(std::vector<std::pair<size_t, ChunkKey>> found) {
  bool stopped = loader_->stopped();
  {
    std::lock_guard lock(mutex_);
    stopped |= stopped_;
    std::erase_if(found, [this](const auto& each) {
      return chunks_[each.first].state != State::kComing;  // computed meanwhile
    });
  }
  if (found.empty() || stopped) return;
  const auto [index, key] = found.front();
  loader_->StoreAsked();
  loader_->store()->FetchShared(
      key, [self = shared_from_this(), found = std::move(found), index = index,
            asked = Stopwatch()](absl::StatusOr<Store::Fetched> fetched) mutable {
        if (fetched.ok()) {
          const auto bytes = static_cast<double>(fetched->chunk->bytes().size());
          self->SetRate(kShared, bytes / std::max(1e-6, asked.seconds()), 0);
          self->Decode(index, fetched->chunk, fetched->origin);
          found.erase(found.begin());
        } else if (absl::IsUnavailable(fetched.status())) {
          for (const auto& [each, unused] : found) self->Absent(each);
          found.clear();
        } else {
          self->Absent(index);
          found.erase(found.begin());
        }
        self->FetchShared(std::move(found));
        self->loader_->StoreAnswered();
      });
}

void Load::CloseSearch() {
  bool missed = false;
  {
    std::lock_guard lock(mutex_);
    for (Chunk& chunk : chunks_) {
      if (chunk.state != State::kSought) continue;
      chunk.state = State::kAbsent;
      missed = true;
    }
  }
  if (missed && loader_->store() != nullptr) loader_->store()->CountMiss();
  request_.on_progress();
}

void Load::Decode(size_t index, StoredChunkPtr chunk, Origin origin) {
  {
    std::lock_guard lock(mutex_);
    Chunk& mine = chunks_[index];
    if (mine.state != State::kComing && mine.state != State::kDecoding) return;
    mine.state = State::kDecoding;
  }
  loader_->options().run([self = shared_from_this(), index, chunk = std::move(chunk), origin] {
    absl::StatusOr<Loaded> loaded = self->DecodeNow(index, *chunk, origin);
    Store* const store = self->loader_->store();
    if (!loaded.ok()) {
      Log(spdlog::level::warn, *self->request_.context, "kv chunk refused",
          "id={} origin={} error=\"{}\"; it is computed", chunk->key().id.Hex().substr(0, 16),
          OriginName(origin), loaded.status().ToString());
      self->loader_->observer().ChunkRefused(origin, loaded.status());
      // It must not stand in the way of the one that will be computed in its place.
      if (store != nullptr && origin != Origin::kPeer) store->Discard(chunk->key());
      return self->Absent(index);
    }
    if (store != nullptr && origin == Origin::kPeer) store->Put(chunk);
    self->loader_->observer().ChunkLoaded(origin, loaded->level, loaded->bytes);
    {
      std::lock_guard lock(self->mutex_);
      Chunk& mine = self->chunks_[index];
      if (mine.state != State::kDecoding) return;
      mine.loaded = *std::move(loaded);
      mine.state = State::kReady;
    }
    self->request_.on_progress();
  });
}

absl::StatusOr<ContextLoad::Loaded> Load::DecodeNow(size_t index, const StoredChunk& chunk,
                                                    Origin origin) {
  const Stopwatch watch;
  const auto first = static_cast<uint32_t>(index * request_.chunk_tokens);
  ASSIGN_OR_RETURN(const codec::ChunkHeader header, loader_->codec().ReadHeader(chunk.payload()));
  if (header.first_position != first || header.n_tokens != request_.chunk_tokens ||
      header.level > chunk.key().level) {
    return absl::DataLossError(absl::StrCat("its KV is of positions ", header.first_position, " + ",
                                            header.n_tokens, ", wanted ", first, " + ",
                                            request_.chunk_tokens));
  }
  Loaded loaded{.kv = loader_->options().new_sink(first, request_.chunk_tokens),
                .level = chunk.key().level,
                .origin = origin,
                .bytes = chunk.bytes().size()};
  ASSIGN_OR_RETURN(const auto planes,
                   loaded.kv->Prepare(first, request_.chunk_tokens, raw_chunk_bytes_));
  RETURN_IF_ERROR(loader_->codec().Decode(chunk.payload(), planes));
  loaded.kv->Commit();
  loader_->speeds().Decoded(loaded.level, raw_chunk_bytes_, watch.seconds());
  return loaded;
}

void Load::Absent(size_t index) {
  {
    std::lock_guard lock(mutex_);
    Chunk& chunk = chunks_[index];
    if (chunk.state != State::kTaken) chunk.state = State::kAbsent;
  }
  request_.on_progress();
}

LoadState Load::StateLocked(double bytes_per_s) const {
  LoadState state{.bytes_per_s = bytes_per_s, .left_s = LeftSeconds()};
  if (text_) state.text_s = text_->SecondsFor(engine_at_);
  std::array<uint32_t, codec::kAllLevels.size()> n{};
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const Chunk& chunk = chunks_[i];
    if (text_ && (chunk.state == State::kComing || chunk.state == State::kHeld)) {
      state.text_all_s += text_->SecondsFor(i);
    }
    if (chunk.state == State::kComing) {
      state.in_flight_bytes += static_cast<double>(chunk.asked_bytes);
    }
    if (chunk.state != State::kHeld) continue;
    ++state.n_chunks;
    for (size_t level = 0; level < n.size(); ++level) {
      if (chunk.held[level] == 0) continue;
      state.chunk_bytes[level] += static_cast<double>(chunk.held[level]);
      ++n[level];
    }
  }
  for (const auto& [unused, flow] : flows_) state.in_flight_bytes -= flow.received;
  state.in_flight_bytes = std::max(0.0, state.in_flight_bytes);
  for (const Level level : codec::kAllLevels) {
    const auto i = static_cast<size_t>(level);
    if (n[i] > 0) state.chunk_bytes[i] /= n[i];
    state.decode_s[i] = loader_->speeds().DecodeSeconds(level, raw_chunk_bytes_);
  }
  return state;
}

void Load::SetRate(size_t holder, double bytes_per_s, double received) {
  std::lock_guard lock(mutex_);
  flows_[holder] = {.bytes_per_s = bytes_per_s, .received = received};
}

ContextLoad::Next Load::Decide(size_t index, const TextCost& text) {
  const double text_s = text.SecondsFor(index);
  std::lock_guard lock(mutex_);
  text_ = text;
  engine_at_ = index;
  Chunk& chunk = chunks_[index];
  if (chunk.state == State::kReady) return Next::kReady;
  if (chunk.state == State::kAbsent || chunk.state == State::kTaken || stopped_) {
    chunk.state = State::kTaken;
    return Next::kCompute;
  }
  // What this node has itself is here within milliseconds.
  if (chunk.state == State::kDecoding) return Next::kWait;
  if (chunk.state == State::kSought) {
    // Whether anybody has it is waited for, but not for long: a peer or a Redis may be away.
    const double patience_s = searching_.empty() ? kSharedPatience * text_s : text_s;
    if (since_begin_.seconds() < patience_s) return Next::kWait;
    chunk.state = State::kTaken;
    return Next::kCompute;
  }
  double bytes_per_s = 0;
  for (const auto& [unused, flow] : flows_) bytes_per_s += flow.bytes_per_s;
  const LoadState state = StateLocked(bytes_per_s);
  const bool asked_for = chunk.state == State::kComing;
  const Level level = asked_for ? chunk.level : ChooseFor(chunk, state);
  if (!PreferText(state, level, asked_for)) return Next::kWait;
  Log(spdlog::level::debug, *request_.context, "kv adapter",
      "chunk={} choice=text bytes_per_s={:.0f} left_s={:.4f} text_s={:.4f} in_flight={:.0f}", index,
      state.bytes_per_s, state.left_s, text_s, state.in_flight_bytes);
  chunk.state = State::kTaken;
  loader_->observer().TextChosen();
  return Next::kCompute;
}

bool Load::TakeIfAbsent(size_t index) {
  std::lock_guard lock(mutex_);
  if (chunks_[index].state != State::kAbsent) return false;
  chunks_[index].state = State::kTaken;
  return true;
}

ContextLoad::Loaded Load::Take(size_t index) {
  std::lock_guard lock(mutex_);
  chunks_[index].state = State::kTaken;
  return std::move(chunks_[index].loaded);
}

void Load::Stop() {
  std::vector<Loaded> dropped;
  std::lock_guard lock(mutex_);
  stopped_ = true;
  for (Chunk& chunk : chunks_) {
    if (chunk.state == State::kReady) dropped.push_back(std::move(chunk.loaded));
    chunk.state = State::kTaken;
  }
}

}  // namespace tandem::kvstore
