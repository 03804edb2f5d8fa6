// Turns a stream of tokens into text that can be sent: whole UTF-8 characters only, and nothing
// that might turn out to be a part of a stop string. Used by the router, one per sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "workers/engine/model.h"

namespace tandem::server {

/// Not thread-safe.
class TextStream {
 public:
  TextStream(std::shared_ptr<const workers::Model> model, std::vector<std::string> stops)
      : model_(std::move(model)), stops_(std::move(stops)) {}

  /// Adds a token and returns the text that is now certain. After a stop string: what came before
  /// it, and stopped() turns true. REQUIRES: !stopped().
  std::string Append(int32_t token) { return AppendBytes(model_->TokenToPiece(token)); }
  /// The same for bytes.
  std::string AppendBytes(std::string_view bytes);
  /// What was held back; broken characters come as U+FFFD. Call once, at the end.
  std::string Flush();
  bool stopped() const { return stopped_; }

 private:
  const std::shared_ptr<const workers::Model> model_;
  const std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

/// `bytes` with every byte that is not part of a valid UTF-8 character replaced by U+FFFD.
std::string ToValidUtf8(std::string_view bytes);
/// The offset of the first byte that is not part of a valid UTF-8 character; npos if there is none.
/// An incomplete character at the end counts as invalid.
size_t FindInvalidUtf8(std::string_view bytes);

}  // namespace tandem::server
