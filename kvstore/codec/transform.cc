#include "kvstore/codec/transform.h"

namespace tandem::kvstore::codec {

const TransformKernels& KernelsFor(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return kTransformAvx2;
    case Isa::kAvx512:
      return kTransformAvx512;
#elif defined(__aarch64__)
    case Isa::kNeon:
      return kTransformNeon;
#endif
    default:
      return kTransformScalar;
  }
}

}  // namespace tandem::kvstore::codec
