#include "workers/engine/output_weights.h"

#include <Eigen/Core>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "gguf.h"
#include "workers/engine/libllama.h"

namespace tandem::workers {
namespace {

constexpr size_t kRowsAtOnce = 256;

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

absl::Status Damaged(const std::string& path) {
  return absl::DataLossError(absl::StrCat("cannot read model file ", path));
}

/// One of a model's files, open for its tensors' data.
class GgufFile {
 public:
  static absl::StatusOr<GgufFile> Open(const std::string& path) {
    GgufFile file;
    file.path_ = path;
    file.gguf_.reset(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}));
    file.data_.reset(std::fopen(path.c_str(), "rb"));
    if (file.gguf_ == nullptr || file.data_ == nullptr) return Damaged(path);
    return file;
  }

  /// Calls `take` with the rows of the tensor of that name, some at a time, a column of the matrix
  /// each. Returns false when it has none such, or one that is not a multiple of `unit` wide or
  /// not readable.
  absl::StatusOr<bool> ForRows(const std::string& name, int64_t unit,
                               const std::function<void(const Eigen::MatrixXf&)>& take) {
    const int64_t id = gguf_find_tensor(gguf_.get(), name.c_str());
    if (id < 0) return false;
    const int64_t width = gguf_get_tensor_ne(gguf_.get(), id)[0];
    if (width % unit != 0) return false;
    const ggml_type type = gguf_get_tensor_type(gguf_.get(), id);
    const auto to_float = ggml_get_type_traits(type)->to_float;
    if (type != GGML_TYPE_F32 && to_float == nullptr) return false;
    const size_t row_bytes = ggml_row_size(type, width);
    const size_t n_rows = gguf_get_tensor_size(gguf_.get(), id) / row_bytes;
    const size_t offset =
        gguf_get_data_offset(gguf_.get()) + gguf_get_tensor_offset(gguf_.get(), id);
    if (fseeko(data_.get(), static_cast<off_t>(offset), SEEK_SET) != 0) return Damaged(path_);

    std::vector<uint8_t> bytes(row_bytes);
    for (size_t row = 0; row < n_rows; row += kRowsAtOnce) {
      Eigen::MatrixXf some(width, static_cast<Eigen::Index>(std::min(kRowsAtOnce, n_rows - row)));
      for (Eigen::Index i = 0; i < some.cols(); ++i) {
        float* const floats = some.col(i).data();
        void* target = type == GGML_TYPE_F32 ? static_cast<void*>(floats) : bytes.data();
        if (std::fread(target, 1, row_bytes, data_.get()) != row_bytes) return Damaged(path_);
        if (type != GGML_TYPE_F32) to_float(bytes.data(), floats, width);
      }
      take(some);
    }
    return true;
  }

 private:
  struct GgufDeleter {
    void operator()(gguf_context* gguf) const { gguf_free(gguf); }
  };
  std::string path_;
  std::unique_ptr<gguf_context, GgufDeleter> gguf_;
  std::unique_ptr<std::FILE, FileCloser> data_;
};

/// Adds the Gram matrices of the query heads of each KV head. `rows`: of the matrix, a column each.
void AddGrams(const Eigen::MatrixXf& rows, Eigen::Index dim, std::vector<Eigen::MatrixXd>& grams) {
  const Eigen::Index group = rows.rows() / dim / static_cast<Eigen::Index>(grams.size());
  for (Eigen::Index head = 0; head < rows.rows() / dim; ++head) {
    const auto part = rows.middleRows(head * dim, dim);
    grams[static_cast<size_t>(head / group)] += (part * part.transpose()).cast<double>();
  }
}

std::vector<float> Flat(const std::vector<Eigen::MatrixXd>& grams) {
  std::vector<float> flat;
  for (const Eigen::MatrixXd& gram : grams) {
    for (Eigen::Index i = 0; i < gram.size(); ++i)
      flat.push_back(static_cast<float>(gram.data()[i]));
  }
  return flat;
}

}  // namespace

absl::StatusOr<std::vector<std::vector<float>>> OutputGrams(const Model& model,
                                                            const kvstore::KvGeometry& geometry,
                                                            const std::vector<size_t>& numbers) {
  std::vector<std::vector<float>> all(geometry.layers.size());
  for (const std::string& path : model.files()) {
    ASSIGN_OR_RETURN(GgufFile file, GgufFile::Open(path));
    for (size_t i = 0; i < all.size(); ++i) {
      const kvstore::KvGeometry::Layer& layer = geometry.layers[i];
      if (!all[i].empty() || layer.v_head_dim == 0) continue;
      const Eigen::Index dim = layer.v_head_dim;
      std::vector<Eigen::MatrixXd> grams(layer.n_kv_heads, Eigen::MatrixXd::Zero(dim, dim));
      ASSIGN_OR_RETURN(const bool found,
                       file.ForRows(absl::StrCat("blk.", numbers[i], ".attn_output.weight"),
                                    dim * layer.n_kv_heads, [&](const Eigen::MatrixXf& rows) {
                                      AddGrams(rows, dim, grams);
                                    }));
      if (found) all[i] = Flat(grams);
    }
  }
  return all;
}

}  // namespace tandem::workers
