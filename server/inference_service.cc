#include "server/inference_service.h"

#include <memory>

#include "absl/strings/escaping.h"
#include "base/status.h"
#include "server/generate_call.h"
#include "server/text_stream.h"

namespace tandem::server {
namespace {

grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context, const absl::Status& status) {
  auto* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceServiceImpl::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  auto call = std::make_shared<GenerateCall>(core_, context);
  call->Open();
  call->Begin(*request);
  return call.get();
}

grpc::ServerUnaryReactor* InferenceServiceImpl::Tokenize(grpc::CallbackServerContext* context,
                                                         const v1::TokenizeRequest* request,
                                                         v1::TokenizeResponse* response) {
  if (absl::Status status = CheckModelName(request->model(), core_->model()); !status.ok()) {
    return Reply(context, status);
  }
  if (request->text().size() > core_->options().max_prompt_bytes) {
    return Reply(context, absl::InvalidArgumentError(absl::StrCat(
                              "text: ", request->text().size(), " bytes; max_prompt_bytes is ",
                              core_->options().max_prompt_bytes)));
  }
  const auto ids = core_->model().Tokenize(request->text(), !request->no_special_tokens());
  response->mutable_token_ids()->Add(ids.begin(), ids.end());
  return Reply(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceServiceImpl::Detokenize(grpc::CallbackServerContext* context,
                                                           const v1::DetokenizeRequest* request,
                                                           v1::DetokenizeResponse* response) {
  absl::Status status = CheckModelName(request->model(), core_->model());
  if (status.ok()) status = CheckTokenIds(request->token_ids(), "token_ids", core_->model());
  if (status.ok()) {
    const std::vector<int32_t> ids(request->token_ids().begin(), request->token_ids().end());
    response->set_text(ToValidUtf8(core_->model().Detokenize(ids)));
  }
  return Reply(context, status);
}

grpc::ServerUnaryReactor* InferenceServiceImpl::ListModels(grpc::CallbackServerContext* context,
                                                           const v1::ListModelsRequest*,
                                                           v1::ListModelsResponse* response) {
  v1::Model* model = response->add_models();
  model->set_name(core_->model().name());
  model->set_fingerprint(absl::BytesToHexString(core_->model().fingerprint()));
  model->set_context_tokens(core_->Limits().context_tokens);
  model->set_vocabulary_size(core_->model().vocabulary_size());
  return Reply(context, absl::OkStatus());
}

}  // namespace tandem::server
