// The best that could have been done by somebody who had known how the link would change.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace tandem::bench {

/// A link's rate over time: each rate holds from its time to the next one's, the last for ever.
class LinkTrace {
 public:
  /// Seconds, bytes/s. REQUIRES: the first at 0, ascending, the last rate > 0.
  struct Step {
    double from_s = 0, bytes_per_s = 0;
  };
  explicit LinkTrace(std::vector<Step> steps) : steps_(std::move(steps)) {}
  /// When so many bytes have come since 0.
  double SecondsToCarry(double bytes) const;
  const std::vector<Step>& steps() const { return steps_; }

 private:
  std::vector<Step> steps_;
};

/// One context's costs, as measured.
struct Costs {
  /// Seconds to compute each chunk, and what comes after the chunks.
  std::vector<double> text_s;
  double rest_s = 0;
  /// A chunk's bytes and seconds to decode it and to put it into the engine, by level.
  std::map<std::string, double> chunk_bytes, decode_s;
};

struct OracleChoice {
  double ttft_s = 0;
  size_t text_chunks = 0;
  std::string level;
};

/// By exhaustive search: so many chunks from the front computed, all others loaded meanwhile, at
/// one level. Computing and decoding do not slow each other down, requests take no time.
OracleChoice BestChoice(const LinkTrace& link, const Costs& costs);

}  // namespace tandem::bench
