#include "workers/calibration/sensitivity.h"

#include <spdlog/spdlog.h>

#include "base/status.h"
#include "workers/engine/attention_layer.h"
#include "workers/engine/output_weights.h"

namespace tandem::workers {
namespace {

void WarnOfUnknown(const char* plane, size_t layer) {
  spdlog::warn("calibration knows no sensitivity plane={} layer={}: all channels count the same",
               plane, layer);
}

/// Sums what belongs to the query heads of each KV head, divided by `count`. All ones when
/// `of_query_heads` is not a whole number of query heads for each of them.
std::vector<float> Fold(const std::vector<double>& of_query_heads, uint32_t n_kv_heads,
                        uint32_t head_dim, double count, size_t layer) {
  const size_t channels = size_t{n_kv_heads} * head_dim;
  if (channels == 0) return {};
  if (of_query_heads.empty() || of_query_heads.size() % channels != 0) {
    WarnOfUnknown("k", layer);
    return std::vector<float>(channels, 1);
  }
  // Neighbouring query heads share a KV head.
  const size_t group = of_query_heads.size() / channels;
  std::vector<double> sums(channels, 0);
  for (size_t i = 0; i < of_query_heads.size(); ++i) {
    const size_t head = i / head_dim / group;
    sums[head * head_dim + i % head_dim] += of_query_heads[i] / count;
  }
  return {sums.begin(), sums.end()};
}

/// libllama mixes the channels of quantised V before it stores them.
bool StoresValuesAsTheyAre(const std::string& type) {
  return type == "f16" || type == "bf16" || type == "f32";
}

std::vector<float> Identities(uint32_t n_heads, uint32_t head_dim) {
  std::vector<float> rows(size_t{n_heads} * head_dim * head_dim, 0);
  for (size_t i = 0; i < size_t{n_heads} * head_dim; ++i) rows[i * head_dim + i % head_dim] = 1;
  return rows;
}

}  // namespace

absl::StatusOr<Sensitivity> MeasureSensitivity(const Model& model, const EngineOptions& options,
                                               const kvstore::KvGeometry& geometry,
                                               std::span<const int32_t> tokens) {
  ASSIGN_OR_RETURN(const auto probed, ProbeAttention(model, options, tokens));
  Sensitivity sensitivity;
  std::vector<size_t> numbers;
  auto found = probed.begin();
  for (const kvstore::KvGeometry::Layer& layer : geometry.layers) {
    const bool known = found != probed.end();
    numbers.push_back(known ? static_cast<size_t>(found->first) : numbers.size());
    sensitivity.k.push_back(Fold(known ? found->second.query_squares : std::vector<double>(),
                                 layer.n_kv_heads, layer.k_head_dim,
                                 static_cast<double>(tokens.size()), numbers.back()));
    if (known) ++found;
  }
  ASSIGN_OR_RETURN(sensitivity.v_gram, OutputGrams(model, geometry, numbers));
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (!sensitivity.v_gram[i].empty() && StoresValuesAsTheyAre(options.v_type)) continue;
    const kvstore::KvGeometry::Layer& layer = geometry.layers[i];
    if (layer.v_head_dim > 0) WarnOfUnknown("v", numbers[i]);
    sensitivity.v_gram[i] = Identities(layer.n_kv_heads, layer.v_head_dim);
  }
  return sensitivity;
}

}  // namespace tandem::workers
