// Loading a GGUF file, its fingerprint, and its tokenizer.
#include "workers/engine/model.h"

#include <openssl/evp.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "workers/engine/libllama.h"

namespace tandem::workers {
namespace {

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using FilePtr = std::unique_ptr<std::FILE, FileCloser>;

struct DigestDeleter {
  void operator()(EVP_MD_CTX* digest) const { EVP_MD_CTX_free(digest); }
};
using DigestPtr = std::unique_ptr<EVP_MD_CTX, DigestDeleter>;

absl::StatusOr<FilePtr> OpenRegular(const std::string& path) {
  FilePtr file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("cannot open model file ", path, ": ", std::strerror(errno)));
  }
  struct stat info;
  if (fstat(fileno(file.get()), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("model path ", path, " is not a file"));
  }
  return file;
}

absl::Status CheckMagic(const std::string& path) {
  ASSIGN_OR_RETURN(FilePtr file, OpenRegular(path));
  char magic[4] = {};
  const size_t n = std::fread(magic, 1, sizeof(magic), file.get());
  if (n == sizeof(magic) && std::memcmp(magic, "GGUF", sizeof(magic)) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("model file ", path, " is not a GGUF file: it begins with \"",
                   absl::CHexEscape(absl::string_view(magic, n)), "\", not \"GGUF\""));
}

absl::Status AddFile(const std::string& path, EVP_MD_CTX* digest) {
  ASSIGN_OR_RETURN(FilePtr file, OpenRegular(path));
  std::vector<char> buffer(1 << 20);
  while (const size_t n = std::fread(buffer.data(), 1, buffer.size(), file.get())) {
    EVP_DigestUpdate(digest, buffer.data(), n);
  }
  if (std::ferror(file.get())) {
    return absl::DataLossError(absl::StrCat("cannot read model file ", path));
  }
  return absl::OkStatus();
}

std::string MetaValue(const llama_model* model, const std::string& key) {
  char value[256];
  const int32_t n = llama_model_meta_val_str(model, key.c_str(), value, sizeof(value));
  return n < 0 ? "" : value;
}

/// The files that make up the model: more than one when it is split into
/// NAME-00001-of-0000N.gguf.
std::vector<std::string> FilesOf(const llama_model* model, const std::string& path) {
  int n = 0;
  char prefix[4096];
  if (!absl::SimpleAtoi(MetaValue(model, "split.count"), &n) || n < 2 ||
      llama_split_prefix(prefix, sizeof(prefix), path.c_str(), 0, n) <= 0) {
    return {path};
  }
  std::vector<std::string> files;
  for (int i = 0; i < n; ++i) {
    char file[4096 + 32];
    llama_split_path(file, sizeof(file), prefix, i, n);
    files.push_back(file);
  }
  return files;
}

absl::StatusOr<std::string> Sha256(const std::vector<std::string>& files) {
  DigestPtr digest(EVP_MD_CTX_new());
  if (digest == nullptr || EVP_DigestInit_ex(digest.get(), EVP_sha256(), nullptr) != 1) {
    return absl::InternalError("OpenSSL offers no SHA-256");
  }
  for (const std::string& file : files) RETURN_IF_ERROR(AddFile(file, digest.get()));
  std::string hash(32, '\0');
  EVP_DigestFinal_ex(digest.get(), reinterpret_cast<unsigned char*>(hash.data()), nullptr);
  return hash;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Model>> Model::Load(const Options& options) {
  InitLibllama();
  RETURN_IF_ERROR(CheckMagic(options.path));
  std::shared_ptr<Model> model(new Model());
  model->path_ = options.path;
  model->name_ = std::filesystem::path(options.path).stem().string();
  model->vocabulary_only_ = options.vocabulary_only;

  llama_model_params params = llama_model_default_params();
  params.vocab_only = options.vocabulary_only;
  params.n_gpu_layers = options.gpu_layers;
  const LibllamaErrors errors;
  model->model_ = llama_model_load_from_file(options.path.c_str(), params);
  if (model->model_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("libllama cannot load model file ", options.path,
                                                   ": ", errors.Text("no reason given")));
  }
  if (llama_vocab_type(model->vocabulary()) == LLAMA_VOCAB_TYPE_NONE) {
    return absl::InvalidArgumentError(
        absl::StrCat("model file ", options.path, " has no tokenizer"));
  }
  model->files_ = FilesOf(model->model_, options.path);
  ASSIGN_OR_RETURN(model->fingerprint_, Sha256(model->files_));
  return std::shared_ptr<const Model>(std::move(model));
}

Model::~Model() {
  if (model_ != nullptr) llama_model_free(model_);
}

uint32_t Model::training_context_tokens() const {
  // From the metadata, because libllama reads no hyperparameters when loading a vocabulary only.
  uint32_t n = 0;
  const std::string architecture = MetaValue(model_, "general.architecture");
  if (absl::SimpleAtoi(MetaValue(model_, architecture + ".context_length"), &n)) return n;
  return static_cast<uint32_t>(std::max(0, llama_model_n_ctx_train(model_)));
}

uint32_t Model::vocabulary_size() const {
  return static_cast<uint32_t>(llama_vocab_n_tokens(vocabulary()));
}

const llama_vocab* Model::vocabulary() const { return llama_model_get_vocab(model_); }

std::vector<int32_t> Model::Tokenize(std::string_view text, bool add_special) const {
  const int32_t length =
      static_cast<int32_t>(std::min<size_t>(text.size(), std::numeric_limits<int32_t>::max() - 16));
  std::vector<int32_t> tokens(length / 2 + 16);
  for (;;) {
    const int32_t n =
        llama_tokenize(vocabulary(), text.data(), length, tokens.data(),
                       static_cast<int32_t>(tokens.size()), add_special, /*parse_special=*/false);
    if (n >= 0 || n == std::numeric_limits<int32_t>::min()) {
      tokens.resize(std::max(n, 0));
      return tokens;
    }
    tokens.resize(-n);
  }
}

std::string Model::TokenToPiece(int32_t token) const {
  if (token < 0 || static_cast<uint32_t>(token) >= vocabulary_size()) return "";
  std::string piece(32, '\0');
  for (;;) {
    const int32_t n = llama_token_to_piece(vocabulary(), token, piece.data(),
                                           static_cast<int32_t>(piece.size()), /*lstrip=*/0,
                                           /*special=*/false);
    piece.resize(std::abs(n));
    if (n >= 0) return piece;
  }
}

std::string Model::Detokenize(std::span<const int32_t> tokens) const {
  // libllama removes the added space from the first token only, so that must not be a control one.
  std::vector<int32_t> shown;
  shown.reserve(tokens.size());
  for (int32_t token : tokens) {
    const bool known = token >= 0 && static_cast<uint32_t>(token) < vocabulary_size();
    if (known && !llama_vocab_is_control(vocabulary(), token)) shown.push_back(token);
  }
  std::string text(shown.size() * 8, '\0');
  for (;;) {
    const int32_t n =
        llama_detokenize(vocabulary(), shown.data(), static_cast<int32_t>(shown.size()),
                         text.data(), static_cast<int32_t>(text.size()),
                         /*remove_special=*/false, /*unparse_special=*/false);
    text.resize(std::abs(n));
    if (n >= 0) return text;
  }
}

std::optional<int32_t> Model::BeginOfText() const {
  if (!llama_vocab_get_add_bos(vocabulary())) return std::nullopt;
  return llama_vocab_bos(vocabulary());
}

bool Model::IsEndOfGeneration(int32_t token) const {
  return llama_vocab_is_eog(vocabulary(), token);
}

}  // namespace tandem::workers
