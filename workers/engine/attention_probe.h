// Looks into libllama's graph while it computes and fills in its AttentionLayers. For GeometryOf
// and ProbeAttention; never part of a serving engine.
#pragma once

#include <map>

#include "workers/engine/attention_layer.h"
#include "workers/engine/context.h"

namespace tandem::workers {

/// Watches one context. Not thread-safe; outlives the context.
class AttentionProbe {
 public:
  AttentionProbe() = default;
  AttentionProbe(const AttentionProbe&) = delete;
  AttentionProbe& operator=(const AttentionProbe&) = delete;

  /// Lets contexts made of `shape` be watched.
  void Watch(ContextShape& shape);
  /// By layer number, of those that were computed.
  const std::map<int, AttentionLayer>& layers() const { return layers_; }

 private:
  static bool OnNode(ggml_tensor* node, bool ask, void* self);
  void Look(ggml_tensor* node);
  void AddQueries(const ggml_tensor* queries, AttentionLayer& layer);

  std::map<int, AttentionLayer> layers_;
  /// Of the graph's nodes so far; a node's address says which it is while its graph lives.
  std::map<const ggml_tensor*, AttentionLayer::Rotation> rotations_;
};

}  // namespace tandem::workers
