// Asks the CPU once; the compiler's built-in also checks that the operating system saves the
// registers.
#include "kvstore/codec/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tandem::kvstore::codec {
namespace {

std::vector<Isa> Detect() {
  std::vector<Isa> found = {Isa::kScalar};
#if defined(__x86_64__)
  // clang 14 knows no name for F16C.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  __builtin_cpu_init();
  if (f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
      __builtin_cpu_supports("fma")) {
    found.push_back(Isa::kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni")) {
      found.push_back(Isa::kAvx512);
    }
  }
#elif defined(__aarch64__)
  found.push_back(Isa::kNeon);
#endif
  return found;
}

}  // namespace

const std::vector<Isa>& SupportedIsas() {
  static const std::vector<Isa> isas = Detect();
  return isas;
}

Isa BestIsa() { return SupportedIsas().back(); }

std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kNeon:
      return "neon";
  }
  return "unknown";
}

}  // namespace tandem::kvstore::codec
