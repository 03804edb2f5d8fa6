// Drives the fuzz target with seeds and with mutations of them that are the same in every run.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "server/config.h"
#include "tests/support/text_mutations.h"

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
  std::vector<std::string> words;
  for (const char c : std::string("{}[]:,-?#&*!|>'\"%@` \n\t\\\r0a\xff")) words.emplace_back(1, c);
  ForEachMutation(Seeds(), words, 20'000, Fuzz);
}

}  // namespace
}  // namespace tandem::server
