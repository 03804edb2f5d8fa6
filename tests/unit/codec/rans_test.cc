// The entropy coder: round trips, sizes against cross-entropy, equal bits on every instruction set,
// and that no input makes the decoder read or write out of bounds (run under AddressSanitizer).
#include "kvstore/codec/rans.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>

namespace tandem::kvstore::codec {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Tables {
  explicit Tables(const FrequencyTable& table) : frequencies(table), encode(table), decode(table) {}
  FrequencyTable frequencies;
  EncodeTable encode;
  DecodeTable decode;
};

struct CodedRun {
  const Tables* tables;
  std::vector<uint8_t> symbols;
};

absl::StatusOr<FrequencyTable> Counted(const std::vector<uint32_t>& counts, int bits) {
  return FrequencyTable::FromCounts(counts, bits);
}

absl::StatusOr<FrequencyTable> Given(const std::vector<uint16_t>& frequencies, int bits) {
  return FrequencyTable::FromFrequencies(frequencies, bits);
}

// Counts like those of quantised values (`spread` in steps), with many symbols that never occur.
std::vector<uint32_t> BellCounts(size_t n, double spread, uint32_t total) {
  std::vector<uint32_t> counts(n);
  for (size_t s = 0; s < n; ++s) {
    const double z = (static_cast<double>(s) - n / 2) / spread;
    counts[s] = static_cast<uint32_t>(total * std::exp(-z * z / 2) / (2.5 * spread));
  }
  return counts;
}

Tables MakeTables(const std::vector<uint32_t>& counts, int bits) {
  return Tables(FrequencyTable::FromCounts(counts, bits).value());
}

// One of every slot order, resolution, and many shapes.
const std::vector<Tables>& AllTables() {
  static const std::vector<Tables> all = [] {
    std::vector<Tables> tables;
    std::mt19937 random(7);
    for (size_t n : {1, 2, 3, 9, 15, 16, 17, 24, 31, 32, 33, 100, 255, 256}) {
      for (int bits : {10, 11, 12}) {
        tables.push_back(MakeTables(std::vector<uint32_t>(n, 1), bits));
        tables.push_back(MakeTables(BellCounts(n, 0.3 + n / 20.0, 1 << 20), bits));
        std::vector<uint32_t> skewed(n);
        for (uint32_t& count : skewed) count = random() >> (random() % 32) >> 2;
        skewed[random() % n] = 1u << 31;
        tables.push_back(MakeTables(skewed, bits));
        std::vector<uint32_t> first_and_last(n);
        first_and_last.front() = 1;
        first_and_last.back() = 4000;
        tables.push_back(MakeTables(first_and_last, bits));
      }
    }
    return tables;
  }();
  return all;
}

CodedRun RandomRun(const Tables& tables, size_t n, std::mt19937& random) {
  std::vector<uint8_t> by_slot;
  const auto frequencies = tables.frequencies.frequencies();
  for (size_t s = 0; s < frequencies.size(); ++s) {
    by_slot.insert(by_slot.end(), frequencies[s], static_cast<uint8_t>(s));
  }
  CodedRun run = {&tables, std::vector<uint8_t>(n)};
  for (uint8_t& symbol : run.symbols) symbol = by_slot[random() % by_slot.size()];
  return run;
}

std::vector<CodedRun> RandomRuns(std::mt19937& random) {
  static constexpr size_t kLengths[] = {0, 1, 31, 32, 33, 63, 64, 65, 256, 1000};
  std::vector<CodedRun> runs;
  for (const Tables& tables : AllTables()) {
    runs.push_back(RandomRun(tables, kLengths[random() % std::size(kLengths)], random));
  }
  return runs;
}

std::vector<uint8_t> Encode(const std::vector<CodedRun>& runs, size_t sets, Isa isa,
                            std::span<const uint16_t> free_words = {}) {
  RansEncoder encoder(isa);
  encoder.Start(sets, free_words);
  for (size_t i = runs.size(); i-- > 0;) {
    encoder.Encode(runs[i].tables->encode, runs[i].symbols.data(), runs[i].symbols.size());
  }
  const auto stream = encoder.Finish();
  return {stream.begin(), stream.end()};
}

// Decodes runs of these lengths and tables; stream and destinations are allocations of their exact
// sizes, so that a sanitizer sees a byte too many. Appends every symbol to `symbols`.
absl::Status Decode(const std::vector<CodedRun>& runs, const std::vector<uint8_t>& bytes,
                    size_t sets, Isa isa, std::vector<uint8_t>& symbols,
                    std::span<uint16_t> free_words = {}) {
  const auto stream = std::make_unique<uint8_t[]>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), stream.get());
  RansDecoder decoder(isa);
  const absl::Status started = decoder.Start({stream.get(), bytes.size()}, sets);
  for (const CodedRun& run : runs) {
    const auto out = std::make_unique<uint8_t[]>(run.symbols.size());
    decoder.Decode(run.tables->decode, out.get(), run.symbols.size());
    symbols.insert(symbols.end(), out.get(), out.get() + run.symbols.size());
  }
  const absl::Status finished = decoder.Finish(free_words);
  EXPECT_TRUE(started.ok() || !finished.ok());
  return finished;
}

std::vector<uint8_t> AllSymbols(const std::vector<CodedRun>& runs) {
  std::vector<uint8_t> all;
  for (const CodedRun& run : runs) all.insert(all.end(), run.symbols.begin(), run.symbols.end());
  return all;
}

class RansTest : public ::testing::TestWithParam<size_t> {
 protected:
  const size_t sets_ = GetParam();
};
INSTANTIATE_TEST_SUITE_P(Sets, RansTest, ::testing::Values(1, 2));

TEST_P(RansTest, EveryInstructionSetWritesTheSameBytesAndReadsThemBack) {
  for (uint32_t seed = 0; seed < 10; ++seed) {
    std::mt19937 random(seed);
    const std::vector<CodedRun> runs = RandomRuns(random);
    const std::vector<uint8_t> bytes = Encode(runs, sets_, Isa::kScalar);
    for (Isa isa : SupportedIsas()) {
      EXPECT_EQ(Encode(runs, sets_, isa), bytes) << IsaName(isa);
      std::vector<uint8_t> symbols;
      EXPECT_TRUE(Decode(runs, bytes, sets_, isa, symbols).ok()) << IsaName(isa);
      EXPECT_EQ(symbols, AllSymbols(runs)) << IsaName(isa);
    }
  }
}

TEST_P(RansTest, EveryTableAndLengthAlone) {
  std::mt19937 random(1);
  for (const Tables& tables : AllTables()) {
    for (size_t n : {0, 1, 31, 32, 33, 256, 1000}) {
      const std::vector<CodedRun> runs = {RandomRun(tables, n, random)};
      for (Isa isa : SupportedIsas()) {
        std::vector<uint8_t> symbols;
        ASSERT_TRUE(Decode(runs, Encode(runs, sets_, isa), sets_, isa, symbols).ok());
        ASSERT_EQ(symbols, runs[0].symbols) << IsaName(isa) << ' ' << n;
      }
    }
  }
}

TEST_P(RansTest, SizeIsTheCrossEntropy) {
  std::mt19937 random(2);
  for (const Tables& tables : AllTables()) {
    std::vector<uint32_t> counts(tables.frequencies.size());
    std::vector<CodedRun> runs;
    for (int i = 0; i < 100; ++i) {
      runs.push_back(RandomRun(tables, 256, random));
      for (uint8_t symbol : runs.back().symbols) ++counts[symbol];
    }
    const double ideal = tables.frequencies.CostBits(counts) / 8;
    const double size = static_cast<double>(Encode(runs, sets_, BestIsa()).size());
    EXPECT_LE(size, 1.005 * ideal + RansMinBytes(sets_));
    EXPECT_GE(size, ideal);
  }
}

TEST_P(RansTest, SingleSymbolCostsNothing) {
  const Tables tables = MakeTables({0, 0, 17, 0}, 12);
  const std::vector<CodedRun> runs = {{&tables, std::vector<uint8_t>(1000, 2)}};
  for (Isa isa : SupportedIsas()) {
    const std::vector<uint8_t> bytes = Encode(runs, sets_, isa);
    EXPECT_EQ(bytes.size(), RansMinBytes(sets_));
    std::vector<uint8_t> symbols;
    EXPECT_TRUE(Decode(runs, bytes, sets_, isa, symbols).ok());
    EXPECT_EQ(symbols, runs[0].symbols);
  }
}

TEST_P(RansTest, CarriesFreeWords) {
  std::mt19937 random(3);
  const std::vector<CodedRun> runs = RandomRuns(random);
  std::vector<uint16_t> words(sets_ * kRansLanes);
  for (uint16_t& word : words) word = static_cast<uint16_t>(random());
  words[0] = 0xffff;
  for (Isa isa : SupportedIsas()) {
    const std::vector<uint8_t> bytes = Encode(runs, sets_, isa, words);
    std::vector<uint16_t> received(words.size());
    std::vector<uint8_t> symbols;
    EXPECT_TRUE(Decode(runs, bytes, sets_, isa, symbols, received).ok());
    EXPECT_EQ(received, words);
    EXPECT_EQ(symbols, AllSymbols(runs));
    EXPECT_FALSE(Decode(runs, bytes, sets_, isa, symbols).ok());
  }
}

TEST_P(RansTest, EveryTruncationIsRefused) {
  std::mt19937 random(4);
  std::vector<CodedRun> runs;
  for (size_t i = 0; i < AllTables().size(); i += 5) {
    runs.push_back(RandomRun(AllTables()[i], 40, random));
  }
  const std::vector<uint8_t> bytes = Encode(runs, sets_, BestIsa());
  for (size_t size = 0; size < bytes.size(); ++size) {
    const std::vector<uint8_t> truncated(bytes.begin(), bytes.begin() + size);
    std::vector<uint8_t> expected;
    EXPECT_FALSE(Decode(runs, truncated, sets_, Isa::kScalar, expected).ok()) << size;
    for (Isa isa : SupportedIsas()) {
      std::vector<uint8_t> symbols;
      EXPECT_FALSE(Decode(runs, truncated, sets_, isa, symbols).ok()) << size;
      EXPECT_EQ(symbols, expected) << IsaName(isa) << ' ' << size;
    }
  }
}

// Damage does not always show: a wrong word can give wrong symbols and the right next state.
TEST_P(RansTest, EveryInstructionSetAgreesOnDamagedStreams) {
  std::mt19937 random(5);
  const std::vector<CodedRun> runs = RandomRuns(random);
  const std::vector<uint8_t> good = Encode(runs, sets_, BestIsa());
  for (int i = 0; i < 100; ++i) {
    std::vector<uint8_t> bytes = good;
    bytes[random() % bytes.size()] ^= static_cast<uint8_t>(1 + random() % 255);
    if (i % 4 == 1) bytes.insert(bytes.end(), {0, 0});
    if (i % 4 == 2) bytes.resize(RansMinBytes(sets_) + random() % 200);
    std::vector<uint8_t> expected;
    const absl::Status status = Decode(runs, bytes, sets_, Isa::kScalar, expected);
    EXPECT_TRUE(i % 4 == 0 || i % 4 == 3 || !status.ok());
    for (Isa isa : SupportedIsas()) {
      std::vector<uint8_t> symbols;
      EXPECT_EQ(Decode(runs, bytes, sets_, isa, symbols), status) << IsaName(isa);
      EXPECT_EQ(symbols, expected) << IsaName(isa);
    }
  }
}

TEST_P(RansTest, RandomBytesAreRefused) {
  std::mt19937 random(6);
  const std::vector<CodedRun> runs = RandomRuns(random);
  for (int i = 0; i < 100; ++i) {
    std::vector<uint8_t> bytes(random() % 4000);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    // States that an encoder might have left, so that the words are decoded.
    for (size_t at = 3; at < std::min(bytes.size(), RansMinBytes(sets_)); at += 4) {
      bytes[at] = bytes[at] & 0x7f;
      bytes[at - 1] |= 1;
    }
    for (Isa isa : SupportedIsas()) {
      std::vector<uint8_t> symbols;
      EXPECT_FALSE(Decode(runs, bytes, sets_, isa, symbols).ok());
    }
  }
}

TEST(RansDecoder, CanBeUsedAgainAfterDamage) {
  std::mt19937 random(8);
  const std::vector<CodedRun> runs = {RandomRun(AllTables()[20], 500, random)};
  const std::vector<uint8_t> bytes = Encode(runs, 1, BestIsa());
  RansDecoder decoder;
  std::vector<uint8_t> out(500);
  EXPECT_FALSE(decoder.Finish().ok());
  EXPECT_FALSE(decoder.Start({bytes.data(), 100}).ok());
  decoder.Decode(runs[0].tables->decode, out.data(), out.size());
  EXPECT_EQ(out, std::vector<uint8_t>(500));
  EXPECT_TRUE(decoder.Start(bytes).ok());
  decoder.Decode(runs[0].tables->decode, out.data(), out.size());
  EXPECT_TRUE(decoder.Finish().ok());
  EXPECT_EQ(out, runs[0].symbols);
}

TEST(EncodeTable, QuotientsAreExact) {
  for (int bits : {10, 12}) {
    for (uint32_t f = 1; f < 1u << bits; ++f) {
      const uint16_t rest = static_cast<uint16_t>((1u << bits) - f);
      const EncodeTable table(Given({static_cast<uint16_t>(f), rest}, bits).value());
      const uint64_t end = static_cast<uint64_t>(f) << (kRansStateBits - bits);
      const uint64_t steps = end / f;
      for (uint64_t i = 0; i < 64; ++i) {
        const uint64_t multiple = (i < 32 ? i + 1 : steps - (i - 32)) * f;
        for (uint64_t x : {multiple - 1, std::min(multiple, end - 1)}) {
          const uint64_t quotient = (2 * x * table.reciprocal[0]) >> (32 + (table.packed[0] >> 28));
          ASSERT_EQ(quotient, x / f) << x << " / " << f;
        }
      }
    }
  }
}

TEST(FrequencyTable, KeepsRareSymbolsAndSumsUp) {
  for (const Tables& tables : AllTables()) {
    uint32_t sum = 0;
    for (uint16_t f : tables.frequencies.frequencies()) sum += f;
    EXPECT_EQ(sum, 1u << tables.frequencies.bits());
  }
  const auto table = Counted({1u << 31, 1, 0, 1}, 10).value();
  EXPECT_THAT(table.frequencies(), ElementsAre(1022, 1, 0, 1));
}

TEST(FrequencyTable, IsAsGoodAsAnyNeighbour) {
  std::mt19937 random(9);
  for (int i = 0; i < 20; ++i) {
    std::vector<uint32_t> counts(20);
    for (uint32_t& count : counts) count = random() >> 12 >> (random() % 18);
    const auto table = Counted(counts, 10).value();
    const double cost = table.CostBits(counts);
    std::vector<uint16_t> other(table.frequencies().begin(), table.frequencies().end());
    for (size_t a = 0; a < counts.size(); ++a) {
      for (size_t b = 0; b < counts.size(); ++b) {
        if (a == b || other[a] < 2) continue;
        --other[a], ++other[b];
        const double neighbour = Given(other, 10).value().CostBits(counts);
        EXPECT_GE(neighbour, cost * (1 - 1e-4));
        ++other[a], --other[b];
      }
    }
  }
}

TEST(FrequencyTable, RefusesHostileFrequencies) {
  const std::vector<uint16_t> many(257, 1);
  const std::vector<uint16_t> wrapped(17, 4096 - 1);
  EXPECT_THAT(Given({}, 12).status().message(), HasSubstr("1 to 256"));
  EXPECT_FALSE(Given(many, 12).ok());
  EXPECT_THAT(Given(wrapped, 12).status().message(), HasSubstr("sum up"));
  EXPECT_FALSE(Given({1000, 23}, 10).ok());
  EXPECT_FALSE(Given({4096}, 13).ok());
  EXPECT_FALSE(Given({1}, 0).ok());
  EXPECT_FALSE(Counted({0, 0}, 12).ok());
  EXPECT_FALSE(Counted({}, 12).ok());
  EXPECT_TRUE(Given({1000, 24}, 10).ok());
}

}  // namespace
}  // namespace tandem::kvstore::codec
