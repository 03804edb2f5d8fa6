#include "workers/step_streams.h"

#include <utility>
#include <vector>

namespace tandem::workers {

bool StepStream::Add(uint64_t sequence, int32_t token) {
  if (gone()) return false;
  std::lock_guard lock(mutex_);
  pending_.add_sequences(sequence);
  pending_.add_tokens(token);
  return true;
}

void StepStream::Flush() {
  // Held while sending: two loops' threads must not overtake each other with one's tokens.
  std::lock_guard lock(mutex_);
  if (pending_.tokens().empty()) return;
  Send(std::exchange(pending_, {}));
}

grpc::ServerWriteReactor<v1::StepTokens>* StepStreams::Open(const std::string& name) {
  auto stream = std::make_shared<StepStream>();
  stream->Open();
  bool stopped = false;
  {
    std::lock_guard lock(mutex_);
    absl::erase_if(streams_, [](const auto& each) { return each.second.expired(); });
    streams_[name] = stream;
    stopped = stopped_;
  }
  if (stopped) stream->End(grpc::Status::OK);
  return stream.get();
}

std::shared_ptr<StepStream> StepStreams::Find(const std::string& name) {
  std::lock_guard lock(mutex_);
  const auto found = streams_.find(name);
  auto stream = found == streams_.end() ? nullptr : found->second.lock();
  return stream == nullptr || stream->gone() ? nullptr : stream;
}

void StepStreams::Stop() {
  std::vector<std::shared_ptr<StepStream>> open;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    for (const auto& [name, stream] : streams_) open.push_back(stream.lock());
  }
  for (const auto& stream : open) {
    if (stream != nullptr) stream->End(grpc::Status::OK);
  }
}

}  // namespace tandem::workers
