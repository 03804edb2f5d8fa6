// What every user of libllama needs once: its start-up, its log routed into ours, its last error.
// For the engine's own files only.
#pragma once

#include <memory>
#include <string>

#include "llama.h"

namespace tandem::workers {

/// Starts libllama and routes its log to spdlog: its errors and warnings as they are, all else as
/// debug. Thread-safe; does its work once.
void InitLibllama();

/// Collects what libllama logs as an error in this thread while it lives, because its functions
/// say no more than "null". Not nested.
class LibllamaErrors {
 public:
  LibllamaErrors();
  ~LibllamaErrors();
  LibllamaErrors(const LibllamaErrors&) = delete;
  LibllamaErrors& operator=(const LibllamaErrors&) = delete;
  /// The messages, separated by "; ", or `otherwise` when there are none.
  std::string Text(const std::string& otherwise) const;
};

struct ContextDeleter {
  void operator()(llama_context* context) const { llama_free(context); }
};
using ContextPtr = std::unique_ptr<llama_context, ContextDeleter>;

}  // namespace tandem::workers
