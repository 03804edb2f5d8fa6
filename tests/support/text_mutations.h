// Mutations of texts that are the same in every run, for the tests of fuzz targets that read text.
#pragma once

#include <random>
#include <string>
#include <vector>

namespace tandem {

/// Calls `use` with so many mutations of the seeds: characters put in, taken out or changed, pieces
/// repeated, and `words` (numbers and keys that parsers may stumble over) put in.
template <typename Use>
void ForEachMutation(const std::vector<std::string>& seeds, const std::vector<std::string>& words,
                     int n, const Use& use) {
  std::mt19937 random(20261126);
  const auto below = [&random](size_t limit) { return limit == 0 ? 0 : random() % limit; };
  for (int i = 0; i < n; ++i) {
    std::string text = seeds[below(seeds.size())];
    for (size_t left = 1 + below(4); left > 0; --left) {
      const size_t at = below(text.size() + 1);
      switch (below(5)) {
        case 0:
          text.insert(at, words[below(words.size())]);
          break;
        case 1:
          text.erase(at, 1 + below(8));
          break;
        case 2:
          if (at < text.size()) text[at] = static_cast<char>(random());
          break;
        case 3:
          text.replace(at, below(6), words[below(words.size())]);
          break;
        default:
          text.insert(at, text.substr(below(text.size()), below(40)));
      }
    }
    use(text);
  }
}

}  // namespace tandem
