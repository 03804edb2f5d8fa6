// Which vector instructions the codec's kernels may use on this machine. Asked by every part of the
// codec that has kernels of more than one kind.
#pragma once

#include <string_view>
#include <vector>

namespace tandem::kvstore::codec {

/// One family of kernels; all of them give the same bits. kAvx2 stands for AVX2, BMI2, FMA and
/// F16C; kAvx512 for those and AVX-512 F, BW, VL, DQ, VBMI, VNNI.
enum class Isa { kScalar, kAvx2, kAvx512, kNeon };

/// What this build has kernels for and this CPU (and its operating system) can run, slowest first;
/// kScalar is always among them. Thread-safe.
const std::vector<Isa>& SupportedIsas();

/// The last of SupportedIsas(). Thread-safe.
Isa BestIsa();

/// "scalar", "avx2", "avx512" or "neon".
std::string_view IsaName(Isa isa);

}  // namespace tandem::kvstore::codec
