#include "tests/integration/worker/worker_fixture.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "base/clock.h"
#include "base/grpc_server.h"
#include "base/status.h"
#include "tests/integration/engine/engine_fixture.h"

namespace tandem::workers {
namespace {

WorkerOptions DefaultOptions(v1::Phase phase) {
  WorkerOptions options;
  options.name = "test";
  options.phase = phase;
  options.prefill_engine = Options(EngineOptions::Use::kPrefill);
  options.decode_engine = Options(EngineOptions::Use::kDecode);
  // With these, a sequence's logits do not depend on those beside it.
  options.prefill_sequences = 1;
  for (EngineOptions* engine : {&options.prefill_engine, &options.decode_engine}) {
    engine->flash_attention = false;
  }
  options.prefill_engine.kv_tokens = 4096;
  options.grpc_listen = options.data_listen = "127.0.0.1:0";
  options.grpc_advertised_host = options.data_advertised_host = "127.0.0.1";
  options.report_interval = absl::Milliseconds(20);
  options.tpot_objective = absl::Seconds(10);
  return options;
}

std::string RandomId() {
  static std::mt19937 random(7);
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  std::string id;
  for (int i = 0; i < 16; ++i) id.push_back(static_cast<char>(random()));
  return id;
}

}  // namespace

bool Eventually(const std::function<bool()>& condition) {
  const Stopwatch waited;
  while (!condition()) {
    if (waited.seconds() > 60) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

TestWorker::TestWorker(v1::Phase phase, const std::function<void(WorkerOptions&)>& change) {
  WorkerOptions options = DefaultOptions(phase);
  if (change) change(options);
  auto started = Worker::Start(std::move(options), DemoModel(), registry_);
  if (!started.ok()) {
    ADD_FAILURE() << started.status();
    std::abort();
  }
  worker_ = *std::move(started);
  stub_ = v1::WorkerService::NewStub(MakeChannel(absl::StrCat("127.0.0.1:", worker_->grpc_port())));
}

double TestWorker::Metric(const std::string& family) const {
  double sum = 0;
  for (const auto& each : registry_->Collect()) {
    if (each.name != family) continue;
    for (const auto& metric : each.metric) sum += metric.counter.value + metric.gauge.value;
  }
  return sum;
}

Outcome Serve(const TestRequest& request, TestWorker& prefill, TestWorker& decode, TestWorker* next,
              const std::function<void(size_t)>& on_token) {
  Outcome outcome;
  const auto failed = [&outcome](const grpc::Status& status) {
    outcome.status = FromGrpc(status);
    return outcome;
  };
  v1::PrefillRequest first;
  first.mutable_header()->set_request_id("test");
  first.mutable_header()->set_tenant("default");
  first.mutable_header()->set_model_fingerprint(DemoModel()->fingerprint());
  first.mutable_header()->set_dispatch(request.can_move ? 1 : 0);
  first.mutable_tokens()->Add(request.prompt.begin(), request.prompt.end());
  first.mutable_sampling()->set_temperature(0);
  first.mutable_sampling()->set_ignore_eos(true);
  first.set_max_tokens(request.max_tokens);
  first.set_handoff_id(RandomId());
  grpc::ClientContext prefill_context;
  prefill_context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120));
  const auto prefilled = prefill.stub().Prefill(&prefill_context, first);
  v1::PrefillEvent event;
  if (!prefilled->Read(&event)) return failed(prefilled->Finish());

  v1::DecodeRequest rest;
  *rest.mutable_header() = first.header();
  *rest.mutable_prompt_tokens() = first.tokens();
  *rest.mutable_sampling() = first.sampling();
  rest.set_max_tokens(first.max_tokens());
  rest.set_data_address(prefill.worker().data_address());
  rest.set_handoff_id(first.handoff_id());
  rest.set_step_stream(request.step_stream);
  rest.set_step_sequence(request.step_sequence);
  TestWorker* at = &decode;
  auto context = std::make_unique<grpc::ClientContext>();
  auto decoded = at->stub().Decode(context.get(), rest);
  if (!prefilled->Read(&event)) return failed(prefilled->Finish());
  outcome.tokens.push_back(event.first_token().token());
  // The streams of workers that the sequence has left; they end when its KV is pulled.
  std::vector<std::unique_ptr<grpc::ClientContext>> left_contexts;
  std::vector<decltype(decoded)> left;
  // While a sequence is parked nothing comes that would tell that it was cancelled.
  std::atomic<bool> over = false;
  std::mutex context_mutex;
  std::thread canceller([&] {
    while (request.cancel != nullptr && !over && !*request.cancel) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    std::lock_guard lock(context_mutex);
    if (request.cancel != nullptr && !over) context->TryCancel();
  });
  const auto end_canceller = [&] {
    over = true;
    canceller.join();
  };
  while (true) {
    v1::DecodeEvent tokens;
    if (!decoded->Read(&tokens)) {
      const grpc::Status status = decoded->Finish();
      end_canceller();
      if (!status.ok()) return failed(status);
      break;
    }
    for (const int32_t token : tokens.tokens()) outcome.tokens.push_back(token);
    outcome.step_tokens += tokens.step_tokens();
    if (on_token) on_token(outcome.tokens.size());
    if (tokens.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
      outcome.finish = tokens.finish_reason();
    }
    if (!tokens.has_moving()) continue;
    ++outcome.moves;
    if (!tokens.moving().handoff_id().empty()) {
      rest.set_data_address(tokens.moving().data_address());
      rest.set_handoff_id(tokens.moving().handoff_id());
      rest.mutable_prompt_tokens()->Clear();
      rest.mutable_prompt_tokens()->Add(request.prompt.begin(), request.prompt.end());
      rest.mutable_prompt_tokens()->Add(outcome.tokens.begin(), outcome.tokens.end() - 1);
      rest.set_max_tokens(request.max_tokens - static_cast<uint32_t>(outcome.tokens.size()) + 1);
    }
    rest.mutable_header()->set_dispatch(rest.header().dispatch() + 1);
    at = next != nullptr ? next : at;
    std::lock_guard lock(context_mutex);
    left_contexts.push_back(std::move(context));
    left.push_back(std::move(decoded));
    context = std::make_unique<grpc::ClientContext>();
    decoded = at->stub().Decode(context.get(), rest);
  }
  for (const auto& stream : left) {
    for (v1::DecodeEvent ignored; stream->Read(&ignored);) {
    }
    outcome.status.Update(FromGrpc(stream->Finish()));
  }
  while (prefilled->Read(&event)) {
  }
  outcome.status.Update(FromGrpc(prefilled->Finish()));
  return outcome;
}

}  // namespace tandem::workers
