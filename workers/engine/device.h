// What an engine computes on, in words. For whoever keeps what was measured on it.
#pragma once

#include <string>

namespace tandem::workers {

/// The processor's name and, when `with_gpus`, those of the GPUs that libllama sees: equal on equal
/// machines, and on no others as far as names tell. Thread-safe.
std::string DeviceDescription(bool with_gpus);

}  // namespace tandem::workers
