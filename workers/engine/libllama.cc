#include "workers/engine/libllama.h"

#include <spdlog/spdlog.h>

#include <mutex>
#include <string_view>

namespace tandem::workers {
namespace {

thread_local bool collecting = false;
thread_local std::string collected;

void OnLog(ggml_log_level level, const char* text, void*) {
  std::string_view line = text;
  while (!line.empty() && line.back() == '\n') line.remove_suffix(1);
  if (line.empty() || line == ".") return;  // loading prints a dot per per cent
  if (level == GGML_LOG_LEVEL_ERROR && collecting) {
    if (!collected.empty()) collected += "; ";
    collected += line;
    return;  // the caller reports it, with what it was doing
  }
  // It takes a unified context's pool for the length of one sequence; Engine::Create warns itself.
  const bool mistaken = line.find("possible training context overflow") != line.npos;
  const auto ours = level == GGML_LOG_LEVEL_ERROR               ? spdlog::level::err
                    : level == GGML_LOG_LEVEL_WARN && !mistaken ? spdlog::level::warn
                                                                : spdlog::level::debug;
  spdlog::log(ours, "libllama: {}", line);
}

}  // namespace

void InitLibllama() {
  static std::once_flag once;
  std::call_once(once, [] {
    llama_log_set(OnLog, nullptr);
    llama_backend_init();
  });
}

LibllamaErrors::LibllamaErrors() {
  collecting = true;
  collected.clear();
}

LibllamaErrors::~LibllamaErrors() { collecting = false; }

std::string LibllamaErrors::Text(const std::string& otherwise) const {
  return collected.empty() ? otherwise : collected;
}

}  // namespace tandem::workers
