#include "workers/engine/incoming_kv.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace tandem::workers {
namespace {

absl::Status CheckLength(uint32_t n_tokens, uint32_t max_tokens) {
  if (n_tokens >= 1 && n_tokens <= max_tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a sequence of ", n_tokens, " tokens does not fit the context of ", max_tokens));
}

absl::Status NoMemory(uint64_t bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat("no memory for ", bytes, " bytes of incoming KV"));
}

class PlainSink : public BlobSink {
 public:
  PlainSink(const BlobFormat& format, uint32_t first_position, uint32_t n_tokens,
            uint32_t n_streams, uint32_t max_tokens, std::shared_ptr<BufferPool> pool)
      : first_position_(first_position),
        n_tokens_(n_tokens),
        max_tokens_(max_tokens),
        plan_(format, n_tokens, n_streams, first_position),
        pool_(std::move(pool)) {
    for (const BlobPlane& plane : format.planes) {
      bytes_per_token_ += plane.row_bytes;
      if (plane.element_bytes != 0) staged_per_token_ += plane.row_bytes;
    }
  }

  absl::StatusOr<std::vector<std::span<uint8_t>>> Prepare(uint32_t first_position,
                                                          uint32_t n_tokens,
                                                          uint64_t body_bytes) override {
    RETURN_IF_ERROR(CheckLength(n_tokens_, max_tokens_ - std::min(first_position_, max_tokens_)));
    RETURN_IF_ERROR(CheckChunk(first_position, n_tokens, body_bytes));
    RETURN_IF_ERROR(Allocate(n_tokens));
    prepared_ = n_tokens;
    std::vector<std::span<uint8_t>> spans;
    size_t staged = 0;
    for (size_t i = 0; i < plan_.format().planes.size(); ++i) {
      const BlobPlane& plane = plan_.format().planes[i];
      const size_t size = plane.row_bytes * n_tokens;
      if (plane.element_bytes == 0) {
        const size_t offset = plan_.plane_offset(i) + plane.row_bytes * received_;
        spans.push_back(blob_.bytes().subspan(offset, size));
      } else {
        spans.push_back(staging_.bytes().subspan(staged, size));
        staged += size;
      }
    }
    return spans;
  }

  void Commit() override {
    const uint8_t* source = staging_.bytes().data();
    for (size_t i = 0; i < plan_.format().planes.size() && prepared_ > 0; ++i) {
      const BlobPlane& plane = plan_.format().planes[i];
      if (plane.element_bytes == 0) continue;
      Scatter(source, plane, blob_.bytes().data() + plan_.plane_offset(i));
      source += plane.row_bytes * prepared_;
    }
    received_ += prepared_;
    prepared_ = 0;
    if (complete()) staging_ = {};
  }

  bool complete() const override { return received_ == n_tokens_ && n_tokens_ > 0; }
  uint32_t n_tokens() const override { return n_tokens_; }
  uint32_t first_position() const override { return first_position_; }
  std::span<const uint8_t> blob() const override { return blob_.bytes(); }

 private:
  absl::Status CheckChunk(uint32_t first, uint32_t n, uint64_t body_bytes) const {
    const uint32_t next = first_position_ + received_;
    if (first != next) {
      return absl::InvalidArgumentError(absl::StrCat(
          first > next ? "hole in the KV: " : "KV arrived twice: ", "a chunk begins at position ",
          first, ", expected ", next));
    }
    if (n == 0 || n > n_tokens_ - received_) {
      return absl::InvalidArgumentError(absl::StrCat("a chunk of ", n, " tokens at position ",
                                                     first, " of a sequence of ", n_tokens_));
    }
    if (body_bytes != bytes_per_token_ * n) {
      return absl::InvalidArgumentError(absl::StrCat("a chunk of ", n, " tokens has ", body_bytes,
                                                     " bytes, expected ", bytes_per_token_ * n));
    }
    return absl::OkStatus();
  }

  absl::Status Allocate(uint32_t n) {
    if (blob_.empty()) {
      blob_ = pool_->Take(plan_.size());
      if (blob_.empty()) return NoMemory(plan_.size());
      plan_.WriteHeaders(blob_.bytes().data());
    }
    const size_t staged = staged_per_token_ * n;
    if (staging_.bytes().size() < staged) {
      staging_ = pool_->Take(staged);
      if (staging_.empty()) return NoMemory(staged);
    }
    return absl::OkStatus();
  }

  void Scatter(const uint8_t* source, const BlobPlane& plane, uint8_t* target) const {
    const size_t run = size_t{plane.element_bytes} * prepared_;
    target += size_t{plane.element_bytes} * received_;
    for (uint64_t channel = 0; channel < plane.row_bytes / plane.element_bytes; ++channel) {
      std::memcpy(target, source, run);
      source += run;
      target += size_t{plane.element_bytes} * n_tokens_;
    }
  }

  const uint32_t first_position_, n_tokens_, max_tokens_;
  const BlobPlan plan_;
  const std::shared_ptr<BufferPool> pool_;
  uint64_t bytes_per_token_ = 0, staged_per_token_ = 0;
  PooledBuffer blob_, staging_;
  uint32_t received_ = 0, prepared_ = 0;
};

class OpaqueSink : public BlobSink {
 public:
  OpaqueSink(uint32_t n_tokens, uint32_t max_tokens, uint64_t max_bytes,
             std::shared_ptr<BufferPool> pool)
      : n_tokens_(n_tokens),
        max_tokens_(max_tokens),
        max_bytes_(max_bytes),
        pool_(std::move(pool)) {}

  absl::StatusOr<std::vector<std::span<uint8_t>>> Prepare(uint32_t first_position,
                                                          uint32_t n_tokens,
                                                          uint64_t body_bytes) override {
    RETURN_IF_ERROR(CheckLength(n_tokens_, max_tokens_));
    if (complete_ || first_position != 0 || n_tokens != n_tokens_) {
      return absl::InvalidArgumentError(
          absl::StrCat("a model with opaque state sends one chunk of all ", n_tokens_,
                       " tokens, got ", n_tokens, " at position ", first_position));
    }
    if (body_bytes == 0 || body_bytes > max_bytes_) {
      return absl::InvalidArgumentError(absl::StrCat("a state of ", body_bytes, " bytes for ",
                                                     n_tokens, " tokens; at most ", max_bytes_,
                                                     " are possible"));
    }
    blob_ = pool_->Take(body_bytes);
    if (blob_.empty()) return NoMemory(body_bytes);
    return std::vector<std::span<uint8_t>>{blob_.bytes()};
  }

  void Commit() override { complete_ = !blob_.empty(); }
  bool complete() const override { return complete_; }
  uint32_t n_tokens() const override { return n_tokens_; }
  uint32_t first_position() const override { return 0; }
  std::span<const uint8_t> blob() const override { return blob_.bytes(); }

 private:
  const uint32_t n_tokens_, max_tokens_;
  const uint64_t max_bytes_;
  const std::shared_ptr<BufferPool> pool_;
  PooledBuffer blob_;
  bool complete_ = false;
};

}  // namespace

std::unique_ptr<BlobSink> NewPlainSink(const BlobFormat& format, uint32_t first_position,
                                       uint32_t n_tokens, uint32_t n_streams, uint32_t max_tokens,
                                       std::shared_ptr<BufferPool> pool) {
  return std::make_unique<PlainSink>(format, first_position, n_tokens, n_streams, max_tokens,
                                     std::move(pool));
}

std::unique_ptr<BlobSink> NewOpaqueSink(uint32_t n_tokens, uint32_t max_tokens, uint64_t max_bytes,
                                        std::shared_ptr<BufferPool> pool) {
  return std::make_unique<OpaqueSink>(n_tokens, max_tokens, max_bytes, std::move(pool));
}

}  // namespace tandem::workers
