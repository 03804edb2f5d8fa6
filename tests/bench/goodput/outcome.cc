#include <limits>

#include "tests/bench/goodput/load_client.h"

namespace tandem::bench {

double Outcome::ttft_s() const {
  if (token_at_s.empty()) return std::numeric_limits<double>::infinity();
  return token_at_s.front() - due_s;
}

double Outcome::tpot_s() const {
  if (!complete()) return std::numeric_limits<double>::infinity();
  if (wanted_tokens < 2) return 0;
  return (token_at_s.back() - token_at_s.front()) / (wanted_tokens - 1);
}

}  // namespace tandem::bench
