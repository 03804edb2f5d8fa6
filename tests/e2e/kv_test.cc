// `tandem kv`, as a process: what it writes, and what it says of a wrong command line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/e2e/harness.h"

namespace tandem::e2e {
namespace {

using testing::HasSubstr;

/// A path that is free again at the end.
class TemporaryPath {
 public:
  explicit TemporaryPath(const std::string& name)
      : path_(testing::TempDir() + std::to_string(getpid()) + "-" + name) {}
  ~TemporaryPath() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

struct Outcome {
  int code = -1;
  std::string output;
};

Outcome RunKv(std::vector<std::string> args) {
  args.insert(args.begin(), {BinaryPath("tandem"), "kv"});
  const TemporaryPath log("kv.log");
  Process process(args, log.path());
  Outcome outcome;
  outcome.code = process.Wait().value_or(-1);
  outcome.output = process.Log();
  return outcome;
}

std::string Story() {
  std::string text;
  for (int i = 0; i < 40; ++i) {
    text += "Once upon a time there was a king who had " + std::to_string(i) +
            " daughters, and the youngest went into the forest to look for the golden bird. ";
  }
  return text;
}

/// The .npy files of an archive without compression, by name: the header's text and the data.
std::map<std::string, std::pair<std::string, std::string>> ReadNpz(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const auto number = [&bytes](size_t at, size_t n) {
    uint32_t value = 0;
    std::memcpy(&value, bytes.data() + at, n);
    return value;
  };
  std::map<std::string, std::pair<std::string, std::string>> arrays;
  for (size_t at = 0; at + 30 < bytes.size() && number(at, 4) == 0x04034b50;) {
    const uint32_t size = number(at + 18, 4), name = number(at + 26, 2);
    const std::string npy = bytes.substr(at + 30 + name, size);
    uint16_t header = 0;
    std::memcpy(&header, npy.data() + 8, sizeof(header));
    arrays[bytes.substr(at + 30, name)] = {npy.substr(10, header), npy.substr(10 + header)};
    at += 30 + name + size;
  }
  return arrays;
}

template <typename Number>
std::vector<Number> As(const std::string& bytes) {
  std::vector<Number> numbers(bytes.size() / sizeof(Number));
  std::memcpy(numbers.data(), bytes.data(), numbers.size() * sizeof(Number));
  return numbers;
}

class KvDumpTest : public testing::Test {
 protected:
  KvDumpTest() : text_("story.txt"), out_("kv.npz") { std::ofstream(text_.path()) << Story(); }
  Outcome Dump(std::vector<std::string> more) {
    more.insert(more.begin(), {"dump", "--model", DemoModel(), "--text", text_.path(), "--out",
                               out_.path(), "--threads=1"});
    return RunKv(more);
  }
  const TemporaryPath text_, out_;
};

TEST_F(KvDumpTest, WritesArrays) {
  const Outcome outcome = Dump({"--tokens=600"});
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("8 layers, 600 tokens, 2 KV heads, K 64 and V 64 channels "
                                        "a head, RoPE interleaved of 64 channels"));
  auto arrays = ReadNpz(out_.path());
  ASSERT_EQ(arrays.size(), 5u);
  for (const std::string name : {"k.npy", "v.npy"}) {
    EXPECT_THAT(arrays[name].first, HasSubstr("'descr': '<f2'"));
    EXPECT_THAT(arrays[name].first, HasSubstr("'shape': (8, 600, 128,)"));
    EXPECT_EQ(arrays[name].second.size(), 8 * 600 * 128 * 2u);
  }
  EXPECT_NE(arrays["k.npy"].second, arrays["v.npy"].second);
  const auto frequencies = As<float>(arrays["inv_freq.npy"].second);
  ASSERT_EQ(frequencies.size(), 32u);
  EXPECT_FLOAT_EQ(frequencies[0], 1);
  EXPECT_FLOAT_EQ(frequencies[31], std::pow(10000.0f, -62.0f / 64));
  const auto positions = As<int32_t>(arrays["positions.npy"].second);
  ASSERT_EQ(positions.size(), 600u);
  EXPECT_EQ(positions[599], 599);
  EXPECT_EQ(As<int32_t>(arrays["token_ids.npy"].second)[0], 1) << "BOS";
}

TEST_F(KvDumpTest, OtherCachesAreWrittenAsFloats) {
  ASSERT_EQ(Dump({"--tokens=50", "--k-type=f32", "--v-type=bf16"}).code, 0);
  auto exact = ReadNpz(out_.path());
  EXPECT_THAT(exact["k.npy"].first, HasSubstr("'descr': '<f4'"));
  EXPECT_THAT(exact["v.npy"].first, HasSubstr("'descr': '<f4'"));
  ASSERT_EQ(Dump({"--tokens=50", "--k-type=bf16", "--v-type=f32", "--no-flash-attention"}).code, 0);
  auto other = ReadNpz(out_.path());
  // The first layer's input is the same, so only the cache's own rounding differs.
  for (const std::string name : {"k.npy", "v.npy"}) {
    const auto a = As<float>(exact[name].second), b = As<float>(other[name].second);
    ASSERT_EQ(a.size(), 8 * 50 * 128u);
    ASSERT_EQ(b.size(), a.size());
    for (size_t i = 0; i < 50 * 128; ++i) EXPECT_NEAR(a[i], b[i], 1e-6 + std::abs(a[i]) / 200);
  }
}

TEST_F(KvDumpTest, SaysWhatIsWrong) {
  const auto expect = [](const Outcome& outcome, const std::string& text) {
    EXPECT_EQ(outcome.code, 2) << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr(text));
  };
  expect(Dump({"--tokens=100000"}), "--tokens is 100000: the text has ");
  expect(Dump({"--k-type=q8_0"}), "the cache is q8_0; f16, bf16 and f32 can be dumped");
  expect(Dump({"--out=/nowhere/x.npz"}), "cannot write /nowhere/x.npz.partial");
  expect(Dump({"--text=/nowhere"}), "--text is '/nowhere': cannot be read");
  expect(Dump({"--out="}), "--out is missing");
  expect(Dump({"extra"}), "unexpected argument 'extra'");
  expect(RunKv({"dump"}), "--out is missing");
  expect(RunKv({"nonsense"}), "unknown command 'kv nonsense'");
  expect(RunKv({}), "which command?");
  EXPECT_FALSE(std::filesystem::exists(out_.path()));
  const Outcome help = RunKv({"dump", "--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.output, HasSubstr("--tokens=N"));
}

class KvProfileTest : public testing::Test {
 protected:
  KvProfileTest()
      : text_("story.txt"), profile_("kv.kvprofile"), json_("kv.json"), plot_("kv.svg") {
    std::ofstream(text_.path()) << Story();
  }
  Outcome Run(const std::string& command, std::vector<std::string> more) {
    more.insert(more.begin(),
                {command, "--model", DemoModel(), "--text", text_.path(), "--threads=1",
                 "--context=100", "--continuation=20", "--windows=2", "--chunk=64"});
    return RunKv(more);
  }
  const TemporaryPath text_, profile_, json_, plot_;
};

TEST_F(KvProfileTest, IsMadeAndEvaluated) {
  const Outcome made = Run("profile", {"--out", profile_.path()});
  ASSERT_EQ(made.code, 0) << made.output;
  EXPECT_THAT(made.output, HasSubstr(profile_.path() + ": "));
  EXPECT_THAT(made.output, HasSubstr("\nq4 "));
  EXPECT_FALSE(std::filesystem::exists(profile_.path() + ".partial"));

  const Outcome outcome =
      Run("eval", {"--profile", profile_.path(), "--level=lossless,q1", "--level=q4", "--json",
                   json_.path(), "--plot", plot_.path()});
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const auto json = nlohmann::json::parse(std::ifstream(json_.path()));
  EXPECT_EQ(json["windows"], 2);
  EXPECT_EQ(json["context_tokens"], 100);
  ASSERT_EQ(json["levels"].size(), 3u);
  const auto &lossless = json["levels"][0], &q1 = json["levels"][1], &q4 = json["levels"][2];
  EXPECT_EQ(lossless["name"], "lossless");
  EXPECT_EQ(lossless["perplexity_change"], 0.0);
  EXPECT_EQ(lossless["top1_agreement"], 1.0);
  EXPECT_EQ(q4["name"], "q4");
  EXPECT_LT(q4["bits_per_element"], q1["bits_per_element"]);
  EXPECT_GT(q4["kl_divergence"], q1["kl_divergence"]);
  for (const auto& level : json["levels"]) {
    const double bits = level["bits_per_element"];
    EXPECT_NEAR(16 / bits, double{level["ratio_to_f16"]}, 1e-6);
    EXPECT_NEAR(bits * 2048 / 8, double{level["kv_bytes_per_token"]}, 1e-6);
    EXPECT_TRUE(std::isfinite(double{level["perplexity_change_se"]}));
    EXPECT_GT(level["encode_symbols_per_s"], 0);
    EXPECT_GT(level["decode_symbols_per_s"], 0);
  }
  EXPECT_EQ(std::filesystem::exists(plot_.path()), true);
}

TEST_F(KvProfileTest, WithoutAProfileOnlySafeLevels) {
  const TemporaryPath model("bare.gguf");
  std::filesystem::copy(DemoModel(), model.path());
  const Outcome outcome = Run("eval", {"--model", model.path()});
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("\nq1 "));
  EXPECT_THAT(outcome.output, testing::Not(HasSubstr("\nq2 ")));
  EXPECT_EQ(Run("eval", {"--model", model.path(), "--level=q3"}).code, 1);
}

TEST_F(KvProfileTest, SaysWhatIsWrong) {
  const auto expect = [](const Outcome& outcome, int code, const std::string& text) {
    EXPECT_EQ(outcome.code, code) << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr(text));
  };
  expect(Run("profile", {"--context=5000"}), 2, "the text is too short: it has ");
  expect(Run("profile", {"--out=/nowhere/x.kvprofile"}), 2, "cannot write /nowhere/x.kvprofile");
  expect(Run("profile", {"extra"}), 2, "unexpected argument 'extra'");
  expect(Run("eval", {"--profile=/nowhere"}), 1, "cannot open /nowhere");
  expect(Run("eval", {"--profile", DemoModel()}), 2, "not a usable KV profile");
  expect(Run("eval", {"--level=q9"}), 2, "q9");
  expect(RunKv({"profile", "--help"}), 0, "--out=FILE");
  expect(RunKv({"eval", "--help"}), 0, "--level=NAMES");
}

}  // namespace
}  // namespace tandem::e2e
