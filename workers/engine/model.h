// A GGUF model: weights and vocabulary (text to tokens and back). The router holds one without
// weights.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

struct llama_model;
struct llama_vocab;

namespace tandem::workers {

/// A loaded GGUF file: weights and vocabulary, or vocabulary only. Immutable, thread-safe; engines
/// share one.
class Model {
 public:
  struct Options {
    std::string path;
    /// Load no weights: enough for Tokenize and friends, not for an Engine.
    bool vocabulary_only = false;
    /// Layers to put on a GPU; 0 for none, -1 for all. Ignored by a CPU build.
    int gpu_layers = -1;
  };
  /// Loads the file and computes its fingerprint (reads the whole file once).
  /// NOT_FOUND when it cannot be opened, INVALID_ARGUMENT when it is not a GGUF that libllama
  /// can load.
  static absl::StatusOr<std::shared_ptr<const Model>> Load(const Options& options);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  /// The file's name without directory and ".gguf".
  const std::string& name() const { return name_; }
  /// SHA-256 of the file (of a split model: of all its files in order), 32 raw bytes.
  const std::string& fingerprint() const { return fingerprint_; }
  const std::string& path() const { return path_; }
  /// The files that it consists of: path(), or all parts of a split model in order.
  const std::vector<std::string>& files() const { return files_; }
  /// True when it was loaded without weights.
  bool vocabulary_only() const { return vocabulary_only_; }
  /// The context length that the model was trained with, tokens.
  uint32_t training_context_tokens() const;
  uint32_t vocabulary_size() const;

  /// Text to ids. `add_special`: put in front (and behind) what the model wants, such as BOS.
  /// Special tokens spelt out in the text are taken as text. Invalid UTF-8 is not an error here.
  /// REQUIRES: text.size() < 2 GiB.
  std::vector<int32_t> Tokenize(std::string_view text, bool add_special) const;
  /// One token's bytes, which may be a part of a UTF-8 character. Empty for control tokens and
  /// for ids out of range.
  std::string TokenToPiece(int32_t token) const;
  /// The bytes of a sequence of tokens, control tokens left out, the leading space that the
  /// tokenizer adds to the first word removed.
  std::string Detokenize(std::span<const int32_t> tokens) const;
  /// The token that the model wants in front of a text, if any.
  std::optional<int32_t> BeginOfText() const;
  /// End of sequence, end of turn and the like.
  bool IsEndOfGeneration(int32_t token) const;

  /// libllama's own handles, for the engine only.
  llama_model* handle() const { return model_; }
  const llama_vocab* vocabulary() const;

 private:
  Model() = default;
  std::string name_, path_, fingerprint_;
  std::vector<std::string> files_;
  bool vocabulary_only_ = false;
  llama_model* model_ = nullptr;
};

}  // namespace tandem::workers
