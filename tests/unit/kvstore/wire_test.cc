// The frame format byte for byte, its limits, and the small rules around it.
#include "kvstore/transfer/wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "kvstore/transfer/address.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using Header = std::span<const uint8_t, wire::kHeaderBytes>;

std::vector<uint8_t> EncodeChunk(const std::vector<uint8_t>& body) {
  v1::ChunkHeader meta;
  meta.set_first_position(256);
  meta.set_n_tokens(3);
  return *wire::EncodeFrame(v1::FRAME_TYPE_CHUNK, meta, body);
}

absl::StatusOr<wire::FrameHeader> Decode(const std::vector<uint8_t>& frame) {
  return wire::DecodeHeader(Header(frame.data(), wire::kHeaderBytes));
}

// Other builds are on the other end of the wire: this layout is fixed for version 2.
TEST(WireTest, TheFormatIsWhatTheProtoFileSays) {
  const std::vector<uint8_t> body = {1, 2, 3, 4, 5};
  const std::vector<uint8_t> frame = EncodeChunk(body);
  const std::vector<uint8_t> expected = {'T', 'D', 'M', '1', 2, 0, 3, 0, 5, 0, 0, 0,
                                         0,   0,   0,   0,   5, 0, 0, 0, 0, 0, 0, 0};
  ASSERT_EQ(frame.size(), wire::kHeaderBytes + 5);
  EXPECT_EQ(std::vector<uint8_t>(frame.begin(), frame.begin() + 24), expected);
  EXPECT_EQ(std::vector<uint8_t>(frame.begin() + 32, frame.end()),
            (std::vector<uint8_t>{0x08, 0x80, 0x02, 0x10, 3}));
  std::vector<uint8_t> covered(frame.begin(), frame.begin() + 24);
  covered.insert(covered.end(), frame.begin() + 32, frame.end());
  covered.insert(covered.end(), body.begin(), body.end());
  uint64_t checksum = 0;
  std::memcpy(&checksum, frame.data() + 24, 8);
  EXPECT_EQ(checksum, XXH3_64bits(covered.data(), covered.size()));
}

TEST(WireTest, HeadersComeBack) {
  const auto header = Decode(EncodeChunk(std::vector<uint8_t>(1000)));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->type, v1::FRAME_TYPE_CHUNK);
  EXPECT_EQ(header->meta_bytes, 5u);
  EXPECT_EQ(header->body_bytes, 1000u);
}

TEST(WireTest, HeadersOutOfTheirLimitsAreRefused) {
  struct Case {
    size_t offset;
    std::vector<uint8_t> bytes;
    StatusCode code;
    const char* message;
  };
  const std::vector<Case> cases = {
      {0, {'H', 'T', 'T', 'P'}, StatusCode::kFailedPrecondition, "does not speak"},
      {4, {1, 0}, StatusCode::kFailedPrecondition, "version 1"},
      {4, {0, 0}, StatusCode::kFailedPrecondition, "version 0"},
      {6, {0, 0}, StatusCode::kDataLoss, "type 0"},
      {6, {17, 0}, StatusCode::kDataLoss, "type 17"},
      {6, {3, 1}, StatusCode::kDataLoss, "type 259"},
      {8, {1, 0, 1, 0}, StatusCode::kDataLoss, "65537"},
      {8, {255, 255, 255, 255}, StatusCode::kDataLoss, "4294967295"},
      {12, {1, 0, 0, 0}, StatusCode::kDataLoss, "reserved"},
      {16, {1, 0, 0, 0, 16, 0, 0, 0}, StatusCode::kDataLoss, "bytes of body"},
      {6, {5, 0}, StatusCode::kDataLoss, "DONE with 7 bytes of body"},
      {6, {16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1}, StatusCode::kDataLoss, "the limit is 16384"},
  };
  for (const Case& c : cases) {
    std::vector<uint8_t> frame = EncodeChunk(std::vector<uint8_t>(7));
    std::copy(c.bytes.begin(), c.bytes.end(), frame.begin() + c.offset);
    const auto header = Decode(frame);
    EXPECT_EQ(header.status().code(), c.code) << c.message;
    EXPECT_THAT(header.status().ToString(), HasSubstr(c.message));
  }
}

TEST(WireTest, MetaLongerThanAFrameTakesIsNotEncoded) {
  const auto frame =
      wire::EncodeFrame(v1::FRAME_TYPE_HELLO, wire::ToHello({{"name", std::string(70000, 'x')}}));
  EXPECT_EQ(frame.status().code(), StatusCode::kInvalidArgument);
}

TEST(WireTest, MetaThatIsNoneIsRefused) {
  const std::vector<uint8_t> bytes = {0x0a, 0xff};
  v1::Hello hello;
  EXPECT_EQ(wire::DecodeMeta(bytes, hello).code(), StatusCode::kDataLoss);
  EXPECT_TRUE(wire::DecodeMeta({}, hello).ok());
}

TEST(WireTest, TheChecksumDoesNotDependOnThePieces) {
  std::vector<uint8_t> bytes(100000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 31);
  wire::Checksum pieces;
  for (size_t at = 0, n = 1; at < bytes.size(); at += n, n = n * 3 % 4099) {
    n = std::min(n, bytes.size() - at);
    pieces.Update(wire::Bytes(bytes).subspan(at, n));
  }
  EXPECT_EQ(pieces.Digest(), XXH3_64bits(bytes.data(), bytes.size()));
  pieces.Reset();
  EXPECT_EQ(pieces.Digest(), XXH3_64bits(nullptr, 0));
}

TEST(ChunkSequenceTest, AcceptsOnlyWhatContinues) {
  wire::ChunkSequence positions;
  EXPECT_EQ(positions.Add(1, 1).code(), StatusCode::kDataLoss);
  EXPECT_TRUE(positions.Add(0, 256).ok());
  EXPECT_EQ(positions.Add(0, 256).code(), StatusCode::kDataLoss);
  EXPECT_EQ(positions.Add(255, 1).code(), StatusCode::kDataLoss);
  EXPECT_EQ(positions.Add(257, 1).code(), StatusCode::kDataLoss);
  EXPECT_EQ(positions.Add(256, 0).code(), StatusCode::kDataLoss);
  EXPECT_EQ(positions.Add(256, UINT32_MAX).code(), StatusCode::kDataLoss);
  EXPECT_TRUE(positions.Add(256, 1).ok());
  EXPECT_EQ(positions.End(256).code(), StatusCode::kDataLoss);
  EXPECT_EQ(positions.End(258).code(), StatusCode::kDataLoss);
  EXPECT_TRUE(positions.End(257).ok());
}

TEST(AbortTest, CarriesCodeAndMessage) {
  const absl::Status reason = absl::OutOfRangeError("past the context");
  EXPECT_EQ(wire::FromAbort(wire::ToAbort(reason)), reason);
  const absl::Status broken = absl::InternalError("\xff\xfe not UTF-8");
  v1::Abort parsed;
  ASSERT_TRUE(parsed.ParseFromString(wire::ToAbort(broken).SerializeAsString()));
  EXPECT_EQ(wire::FromAbort(parsed), broken);
}

TEST(AbortTest, LongMessagesAreCutAndForeignCodesAreUnknown) {
  const absl::Status cut =
      wire::FromAbort(wire::ToAbort(absl::InternalError(std::string(1 << 20, 'x'))));
  EXPECT_EQ(cut.message().size(), 16384u);
  for (const int code : {0, -1, 17, 1 << 30}) {
    v1::Abort abort;
    abort.set_code(code);
    EXPECT_EQ(wire::FromAbort(abort).code(), StatusCode::kUnknown);
  }
}

TEST(IdentityTest, SurvivesTheHandshake) {
  const Identity identity = {{"a", "1"}, {"b", ""}, {"c", "x y"}};
  EXPECT_EQ(wire::FromHello(wire::ToHello(identity)), identity);
}

TEST(IdentityTest, ComparisonNamesEveryDifference) {
  const Identity ours = {{"engine", "abc"}, {"layers", "8"}, {"lora", "x"}};
  EXPECT_TRUE(CompareIdentity(ours, ours).ok());
  const absl::Status status =
      CompareIdentity(ours, {{"engine", "abc"}, {"layers", "9"}, {"swa", "1"}});
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("layers is 8 here and 9 there"));
  EXPECT_THAT(message, HasSubstr("lora is x here and (absent) there"));
  EXPECT_THAT(message, HasSubstr("swa is (absent) here and 1 there"));
  EXPECT_THAT(message, testing::Not(HasSubstr("engine")));
}

TEST(AddressTest, HostAndPort) {
  for (const auto& [text, host, port] :
       {std::tuple{"127.0.0.1:7000", "127.0.0.1", 7000}, std::tuple{"[::1]:1", "::1", 1},
        std::tuple{"worker-0.pool:65535", "worker-0.pool", 65535}}) {
    const auto address = ParseAddress(text);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->host, host);
    EXPECT_EQ(address->port, port);
  }
  for (const char* bad :
       {"", ":", "a", "a:", ":1", "a:1x", "a:-1", "a:65536", "::1:5", "[]:5", "a: 1"}) {
    EXPECT_EQ(ParseAddress(bad).status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace tandem::kvstore
