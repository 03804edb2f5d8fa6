// Drives the fuzz target with seeds and with mutations of them that are the same in every run.
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "server/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace tandem::server {
namespace {

void Fuzz(const std::string& text) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
}

std::vector<std::string> Seeds() {
  return {"",
          ToYaml(Config{}, {}),
          "role: worker\nphase: decode\nmodel: /m.gguf\nrouters: [a:1, b:2]\ncpus:\n  - 1\n",
          "model: &a x\nname: *a\n",
          ",",
          "&a [*a]",
          "model: !!binary aGk=\n",
          "? [a]\n: b\n",
          "model: |\n  several\n  lines\n",
          "%YAML 1.2\n---\nmodel: x\n...\n",
          "model: \"\\u00e9\\x41\\\n  b\"\n",
          "<<: {model: x}\n",
          "\xef\xbb\xbfmodel: x\n",
          std::string("model: a\0b\n", 11),
          "\xff\xfe\x00m"};
}

TEST(ConfigFuzz, Seeds) {
  for (const std::string& seed : Seeds()) Fuzz(seed);
}

TEST(ConfigFuzz, DeepNestingAndLongLines) {
  for (const char* opening : {"[", "{", "- ", "? ", "a: ", "&a ", "!a ", "{a: "}) {
    std::string text;
    for (int i = 0; i < 20'000; ++i) text += opening;
    Fuzz(text);
    Fuzz("model: " + text);
  }
  Fuzz("model: " + std::string(1 << 20, 'x'));
  Fuzz(std::string(1 << 20, '\n'));
}

TEST(ConfigFuzz, Mutations) {
  const std::vector<std::string> seeds = Seeds();
  const std::string spice = "{}[]:,-?#&*!|>'\"%@` \n\t\\\r0a\xff";
  std::mt19937 random(1);
  const auto below = [&random](size_t n) { return n == 0 ? 0 : random() % n; };
  for (int i = 0; i < 20'000; ++i) {
    std::string text = seeds[below(seeds.size())];
    for (size_t n = 1 + below(4); n > 0; --n) {
      const size_t at = below(text.size() + 1);
      switch (below(4)) {
        case 0:
          text.insert(at, 1, spice[below(spice.size())]);
          break;
        case 1:
          text.erase(at, 1 + below(8));
          break;
        case 2:
          if (at < text.size()) text[at] = static_cast<char>(random());
          break;
        default:
          text.insert(at, text.substr(below(text.size()), below(40)));
      }
    }
    Fuzz(text);
  }
}

}  // namespace
}  // namespace tandem::server
