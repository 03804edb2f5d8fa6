// Loading models, good and bad, and the tokenizer.
#include <gmock/gmock.h>
#include <openssl/sha.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/integration/engine/engine_fixture.h"

namespace tandem::workers {
namespace {

using ::testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A file of that content, removed at the end.
class TemporaryFile {
 public:
  TemporaryFile(const std::string& name, const std::string& content)
      : path_(::testing::TempDir() + std::to_string(getpid()) + "-" + name) {
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

void ExpectLoadFails(const std::string& path, absl::StatusCode code, const std::string& text) {
  for (bool vocabulary_only : {false, true}) {
    const auto model = Model::Load({.path = path, .vocabulary_only = vocabulary_only});
    EXPECT_EQ(model.status().code(), code) << model.status();
    EXPECT_THAT(std::string(model.status().message()), HasSubstr(path));
    EXPECT_THAT(std::string(model.status().message()), HasSubstr(text));
  }
}

TEST(ModelLoadTest, NamesWhatIsWrongWithTheFile) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectLoadFails("/nowhere/model.gguf", absl::StatusCode::kNotFound, "No such file");
  ExpectLoadFails(::testing::TempDir(), kInvalid, "is not a file");
  const TemporaryFile empty("empty.gguf", "");
  ExpectLoadFails(empty.path(), kInvalid, "not a GGUF file");
  const TemporaryFile text("text.gguf", "hello, world\n");
  ExpectLoadFails(text.path(), kInvalid, "begins with \"hell\"");
  const TemporaryFile header("header.gguf", "GGUF");
  ExpectLoadFails(header.path(), kInvalid, "cannot load");
  const std::string whole = ReadFile(DemoModelPath());
  const TemporaryFile cut("cut.gguf", whole.substr(0, 20000));
  ExpectLoadFails(cut.path(), kInvalid, "cannot load");
}

TEST(ModelLoadTest, TruncatedWeightsAreRefused) {
  const std::string whole = ReadFile(DemoModelPath());
  const TemporaryFile cut("weights.gguf", whole.substr(0, whole.size() - 100000));
  const auto model = Model::Load({.path = cut.path()});
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(model.status().message()), HasSubstr("cannot load"));
}

TEST(ModelLoadTest, TellsWhatItLoaded) {
  const auto vocabulary = Model::Load({.path = DemoModelPath(), .vocabulary_only = true});
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  for (const auto& model : {DemoModel(), *vocabulary}) {
    EXPECT_EQ(model->name(), "demo-q8_0");
    EXPECT_EQ(model->path(), DemoModelPath());
    EXPECT_EQ(model->training_context_tokens(), 2048u);
    EXPECT_EQ(model->vocabulary_size(), 4096u);
    const std::string file = ReadFile(DemoModelPath());
    std::string hash(SHA256_DIGEST_LENGTH, '\0');
    SHA256(reinterpret_cast<const unsigned char*>(file.data()), file.size(),
           reinterpret_cast<unsigned char*>(hash.data()));
    EXPECT_EQ(model->fingerprint(), hash);
  }
  EXPECT_TRUE((*vocabulary)->vocabulary_only());
}

TEST(TokenizerTest, RoundTripsTextOfEveryKind) {
  const auto vocabulary = Model::Load({.path = DemoModelPath(), .vocabulary_only = true});
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  for (const std::string text :
       {"Once upon a time", "", " leading", "two  spaces\n\nand lines\t", "é ß ñ", "漢字 かな",
        "🙂🚀 x", "<s> </s> is text", "\xff\xfe broken \xc3"}) {
    const auto tokens = (*vocabulary)->Tokenize(text, /*add_special=*/true);
    EXPECT_EQ(tokens, DemoModel()->Tokenize(text, true));
    ASSERT_FALSE(tokens.empty());
    EXPECT_EQ(tokens.front(), 1);  // BOS
    if (text.find('\xff') == std::string::npos) {
      EXPECT_EQ((*vocabulary)->Detokenize(tokens), text);
    }
    std::string pieces;
    for (int32_t token : tokens) pieces += (*vocabulary)->TokenToPiece(token);
    if (!text.empty()) pieces.erase(0, 1);  // the space that the tokenizer puts in front
    EXPECT_EQ(pieces, (*vocabulary)->Detokenize(tokens));
  }
  EXPECT_TRUE((*vocabulary)->Tokenize("", /*add_special=*/false).empty());
}

TEST(TokenizerTest, TakesALongTextAndAnyBytes) {
  std::string text;
  for (int i = 0; i < 200'000; ++i) text += static_cast<char>((i * 7919) >> 3);
  const auto tokens = DemoModel()->Tokenize(text, true);
  EXPECT_GT(tokens.size(), text.size() / 8);
  EXPECT_FALSE(DemoModel()->Detokenize(tokens).empty());
}

TEST(TokenizerTest, ToleratesIdsOutOfRange) {
  for (int32_t token : {-1, 4096, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(DemoModel()->TokenToPiece(token), "");
    EXPECT_FALSE(DemoModel()->IsEndOfGeneration(token));
  }
  EXPECT_EQ(DemoModel()->Detokenize(std::vector<int32_t>{-5, 99999}), "");
  EXPECT_TRUE(DemoModel()->IsEndOfGeneration(2));
  EXPECT_FALSE(DemoModel()->IsEndOfGeneration(300));
  EXPECT_EQ(DemoModel()->TokenToPiece(1), "") << "BOS is a control token";
}

}  // namespace
}  // namespace tandem::workers
