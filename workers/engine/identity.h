// What two engines must have in common for KV of one to mean the same in the other. For
// Engine::Create.
#pragma once

#include "kvstore/kv_layout.h"
#include "workers/engine/context.h"
#include "workers/engine/self_check.h"

namespace tandem::workers {

/// The KV's layout in the terms of transfer and store.
kvstore::KvLayout LayoutOf(const MemoryKind& kind);

/// Everything that the bytes of a KV cache depend on and do not tell themselves.
kvstore::Identity IdentityOf(const Model& model, const CacheSettings& settings,
                             const MemoryKind& kind);

}  // namespace tandem::workers
