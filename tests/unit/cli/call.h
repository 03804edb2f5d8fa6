// Runs a sub-command in this process, as its tests do.
#pragma once

#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "cli/client.h"
#include "cli/interrupt.h"

namespace tandem::cli {

// Before any thread of gRPC's starts, as in main.
inline const bool kHeld = (HoldSignals(), true);

struct Outcome {
  int code = 0;
  std::string out, err;
};

/// `router`: what TANDEM_ROUTER says; empty for nothing.
inline Outcome Call(int (*command)(std::span<char* const>, const Terminal&),
                    std::vector<std::string> args, const std::string& router) {
  std::vector<char*> pointers;
  for (std::string& arg : args) pointers.push_back(arg.data());
  std::ostringstream out, err;
  const Terminal terminal{.out = out, .err = err, .getenv = [&](const char* name) -> const char* {
                            return std::string_view(name) == "TANDEM_ROUTER" && !router.empty()
                                       ? router.c_str()
                                       : nullptr;
                          }};
  Outcome outcome;
  outcome.code = command(pointers, terminal);
  outcome.out = out.str();
  outcome.err = err.str();
  return outcome;
}

}  // namespace tandem::cli
