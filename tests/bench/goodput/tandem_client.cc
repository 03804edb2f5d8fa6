#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/grpc_server.h"
#include "tandem/v1/inference.grpc.pb.h"
#include "tests/bench/goodput/load_client.h"

namespace tandem::bench {
namespace {

using std::chrono::system_clock;

v1::GenerateRequest MessageFor(const Arrival& arrival) {
  v1::GenerateRequest message;
  message.mutable_prompt_tokens()->mutable_ids()->Add(arrival.prompt.begin(), arrival.prompt.end());
  message.set_max_tokens(arrival.output_tokens);
  message.set_tenant(arrival.tenant);
  message.mutable_sampling()->set_temperature(0);
  message.mutable_sampling()->set_ignore_eos(true);
  return message;
}

/// One request in flight; its own tag in the completion queue.
struct Call {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateResponse>> reader;
  v1::GenerateResponse message;
  grpc::Status status;
  enum { kStarting, kReading, kFinishing } state = kStarting;
  size_t index = 0;
};

class TandemClient : public LoadClient {
 public:
  explicit TandemClient(const std::string& address)
      : channel_(MakeChannel(address)), stub_(v1::InferenceService::NewStub(channel_)) {
    channel_->WaitForConnected(system_clock::now() + std::chrono::seconds(30));
  }

  std::vector<Outcome> Run(std::span<const Arrival> trace, double rate) override {
    std::vector<v1::GenerateRequest> messages;
    for (const Arrival& arrival : trace) messages.push_back(MessageFor(arrival));
    outcomes_.assign(trace.size(), {});
    clock_ = Stopwatch();
    const auto begin = system_clock::now();
    grpc::CompletionQueue queue;
    size_t sent = 0, ended = 0;
    while (ended < trace.size()) {
      void* tag = nullptr;
      bool ok = false;
      auto due = system_clock::time_point::max();
      if (sent < trace.size()) {
        due =
            begin + std::chrono::microseconds(static_cast<int64_t>(trace[sent].at_s / rate * 1e6));
      }
      const auto next = queue.AsyncNext(&tag, &ok, due);
      if (next == grpc::CompletionQueue::TIMEOUT) {
        outcomes_[sent] = {.due_s = trace[sent].at_s / rate,
                           .sent_s = clock_.seconds(),
                           .prompt_tokens = static_cast<uint32_t>(trace[sent].prompt.size()),
                           .wanted_tokens = trace[sent].output_tokens};
        Start(messages[sent], sent, queue);
        ++sent;
      } else if (Advance(*static_cast<Call*>(tag), ok)) {
        delete static_cast<Call*>(tag);
        ++ended;
      }
    }
    return std::move(outcomes_);
  }

 private:
  void Start(const v1::GenerateRequest& message, size_t index, grpc::CompletionQueue& queue) {
    auto* call = new Call();  // until its last event
    call->index = index;
    call->reader = stub_->PrepareAsyncGenerate(&call->context, message, &queue);
    call->reader->StartCall(call);
  }

  /// True: that was the call's last event.
  bool Advance(Call& call, bool ok) {
    Outcome& outcome = outcomes_[call.index];
    if (call.state == Call::kFinishing) {
      outcome.end_s = clock_.seconds();
      if (!call.status.ok()) NoteError(call, outcome);
      return true;
    }
    if (call.state == Call::kReading && ok && call.message.token_ids_size() > 0) {
      outcome.token_at_s.push_back(clock_.seconds());
      outcome.token_counts.push_back(static_cast<uint32_t>(call.message.token_ids_size()));
      outcome.tokens += outcome.token_counts.back();
    }
    if (call.state == Call::kReading && ok && call.message.has_timings()) {
      const v1::Timings& timings = call.message.timings();
      outcome.parts = {.router_queue_s = timings.router_queue_s(),
                       .prefill_queue_s = timings.prefill_queue_s(),
                       .prefill_s = timings.prefill_s(),
                       .decode_queue_s = timings.decode_queue_s(),
                       .handoff_s = timings.handoff_s(),
                       .decode_s = timings.decode_s()};
    }
    if (ok) {
      call.state = Call::kReading;
      call.reader->Read(&call.message, &call);
    } else {
      call.state = Call::kFinishing;
      call.reader->Finish(&call.status, &call);
    }
    return false;
  }

  static void NoteError(const Call& call, Outcome& outcome) {
    outcome.error =
        absl::StrCat("code ", call.status.error_code(), ": ", call.status.error_message());
    outcome.refused = call.status.error_code() == grpc::RESOURCE_EXHAUSTED && outcome.tokens == 0;
    const auto& trailers = call.context.GetServerTrailingMetadata();
    if (const auto it = trailers.find("grpc-retry-pushback-ms"); it != trailers.end()) {
      double milliseconds = 0;
      if (absl::SimpleAtod({it->second.data(), it->second.size()}, &milliseconds)) {
        outcome.retry_after_s = milliseconds / 1e3;
      }
    }
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> stub_;
  std::vector<Outcome> outcomes_;
  Stopwatch clock_;
};

}  // namespace

std::unique_ptr<LoadClient> MakeTandemClient(const std::string& address) {
  return std::make_unique<TandemClient>(address);
}

}  // namespace tandem::bench
