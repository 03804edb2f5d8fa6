#include "kvstore/transfer/handoff_encoding.h"

#include <algorithm>

#include "base/log.h"
#include "kvstore/transfer/await_callback.h"

namespace tandem::kvstore {
namespace {

namespace asio = boost::asio;

/// What a link is taken for before TCP has measured it.
constexpr double kInitialBytesPerS = 125e6;
/// Without a measured prefill speed: KV should be there so soon after it is computed.
constexpr double kInitialSlackS = 0.02;

codec::Level LevelOf(size_t encoding) { return static_cast<codec::Level>(encoding - 1); }

}  // namespace

uint32_t CommonEncodings(const v1::Pull& pull, const ChunkCoder* coder, codec::Level floor) {
  if (coder == nullptr) return 1;
  uint32_t common = pull.encodings() & coder->encodings();
  if (pull.profile_id() != coder->profile_id()) {
    common &= 1u << EncodingOf(codec::Level::kLossless);
  }
  return 1 | (common & ((2u << EncodingOf(floor)) - 1));
}

size_t ChooseEncoding(OfferedKv& offer, const ReadyChunk& chunk, uint32_t encodings,
                      const SendState& link, const ChunkCoder* coder) {
  const HandoffPlan& plan = offer.plan();
  if (encodings == 1 || plan.n_tokens == 0) return 0;
  const double rate = link.bytes_per_s > 0 ? link.bytes_per_s : kInitialBytesPerS;
  const double token_bytes =
      static_cast<double>(chunk.body().size()) / std::max(1u, chunk.chunk()->n_tokens);
  const double left_bytes = token_bytes * (plan.n_tokens - chunk.chunk()->first_position);
  const double computing_s =
      plan.seconds_per_token * (plan.n_tokens - std::min(plan.n_tokens, offer.computed_tokens()));
  const double slack_s =
      plan.seconds_per_token > 0 ? plan.seconds_per_token * plan.chunk_tokens : kInitialSlackS;
  size_t chosen = 0;
  for (size_t encoding = 0; encoding < kEncodings; ++encoding) {
    if (((encodings >> encoding) & 1) == 0) continue;
    chosen = encoding;
    const double ratio = encoding == 0 ? 1 : coder->SizeRatio(LevelOf(encoding));
    if ((left_bytes * ratio + link.backlog_bytes) / rate <= computing_s + slack_s) break;
  }
  Log(spdlog::level::debug, offer.context(), "handoff adapter",
      "position={} encoding={} bytes_per_s={:.0f} backlog={:.0f} left_bytes={:.0f} "
      "computing_s={:.4f} slack_s={:.4f}",
      chunk.chunk()->first_position,
      chosen == 0 ? std::string_view("raw") : codec::LevelName(LevelOf(chosen)), rate,
      link.backlog_bytes, left_bytes, computing_s, slack_s);
  return chosen;
}

asio::awaitable<absl::StatusOr<std::vector<uint8_t>>> Encoded(ChunkCoder& coder,
                                                              std::shared_ptr<const KvChunk> chunk,
                                                              size_t encoding) {
  co_return co_await AwaitCallback<absl::StatusOr<std::vector<uint8_t>>>(
      [&](auto done) { coder.Encode(std::move(chunk), LevelOf(encoding), std::move(done)); });
}

asio::awaitable<absl::Status> Decoded(ChunkCoder& coder, std::vector<uint8_t> bytes,
                                      uint32_t first_position, uint32_t n_tokens,
                                      std::vector<std::span<uint8_t>> planes) {
  co_return co_await AwaitCallback<absl::Status>([&](auto done) {
    coder.Decode(std::move(bytes), first_position, n_tokens, std::move(planes), std::move(done));
  });
}

}  // namespace tandem::kvstore
