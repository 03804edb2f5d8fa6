// Names of chunks, and what their envelope refuses.
#include "kvstore/chunk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "absl/container/flat_hash_set.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;

std::vector<int32_t> Tokens(size_t n, int32_t first = 0) {
  std::vector<int32_t> tokens(n);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

const std::string& Namespace() {
  static const std::string value = KvNamespace({{"model", "tale"}, {"type_k", "f16"}});
  return value;
}

std::string Hex(std::string_view bytes) {
  ChunkId id;
  std::copy(bytes.begin(), bytes.end(), id.bytes.begin());
  return id.Hex();
}

ChunkKey SomeKey(Level level = Level::kQ2) {
  return {ChunkIds(Namespace(), "alice", Tokens(4), 4)[0], level};
}

std::vector<uint8_t> Copy(const StoredChunkPtr& chunk) {
  return {chunk->bytes().begin(), chunk->bytes().end()};
}

StoredChunkPtr SomeChunk(size_t payload_bytes = 16) {
  std::vector<uint8_t> payload(payload_bytes);
  std::iota(payload.begin(), payload.end(), 1);
  return StoredChunk::Seal(SomeKey(), 512, 256, payload);
}

// The expected values come from Python's hashlib.
TEST(ChunkIdTest, IdsStayWhatTheyAre) {
  EXPECT_EQ(Hex(Namespace()), "86880ec4263bbbba57ae166203f69dd72330b7082e23cb882b3e86f196c25848");
  const std::vector<ChunkId> ids = ChunkIds(Namespace(), "alice", Tokens(10, -2), 4);
  ASSERT_EQ(ids.size(), 2u);
  EXPECT_EQ(ids[0].Hex(), "ecb139d2992e87d3e64b78a398db718a8604c9af4b97518349d9454a68133441");
  EXPECT_EQ(ids[1].Hex(), "9103aa41c59340d4437367668e787fefb0a5e98ea3c9e89cad1f574a95606a11");
  EXPECT_EQ(ids[0].Hash(), 0xd3872e99d239b1ecu);
}

TEST(ChunkIdTest, APrefixHasThePrefixOfTheIds) {
  const std::vector<ChunkId> all = ChunkIds(Namespace(), "alice", Tokens(1000), 16);
  ASSERT_EQ(all.size(), 62u);
  for (size_t n = 0; n <= 1000; n += 7) {
    const std::vector<ChunkId> some = ChunkIds(Namespace(), "alice", Tokens(n), 16);
    ASSERT_EQ(some, std::vector<ChunkId>(all.begin(), all.begin() + n / 16)) << n;
  }
  EXPECT_EQ(std::set<ChunkId>(all.begin(), all.end()).size(), all.size());
}

TEST(ChunkIdTest, OneTokenChangesEveryIdFromItsChunkOn) {
  std::vector<int32_t> tokens = Tokens(64);
  const std::vector<ChunkId> before = ChunkIds(Namespace(), "alice", tokens, 16);
  tokens[17] = 1000;
  const std::vector<ChunkId> after = ChunkIds(Namespace(), "alice", tokens, 16);
  EXPECT_EQ(after[0], before[0]);
  for (size_t i = 1; i < 4; ++i) EXPECT_NE(after[i], before[i]) << i;
}

TEST(ChunkIdTest, TenantsNamespacesAndChunkSizesDiffer) {
  std::set<ChunkId> ids;
  size_t n = 0;
  for (const std::string tenant : {"", "alice", "alicf", "alice "}) {
    for (const Identity& identity :
         {Identity{{"model", "tale"}}, Identity{{"model", "tal"}}, Identity{{"mode", "ltale"}},
          Identity{{"model", "tale"}, {"type_k", "f16"}}, Identity{}}) {
      for (const uint32_t chunk_tokens : {4, 8}) {
        ids.insert(ChunkIds(KvNamespace(identity), tenant, Tokens(8), chunk_tokens).back());
        ++n;
      }
    }
  }
  EXPECT_EQ(ids.size(), n);
}

TEST(ChunkIdTest, Hex) {
  const ChunkId id = SomeKey().id;
  const auto again = ChunkId::FromHex(id.Hex());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, id);
  for (const std::string& wrong : {std::string(), std::string(63, 'a'), std::string(65, 'a'),
                                   std::string(63, 'a') + 'g', std::string(32, '\0')}) {
    EXPECT_EQ(ChunkId::FromHex(wrong).status().code(), StatusCode::kInvalidArgument) << wrong;
  }
}

TEST(ChunkKeyTest, BytesAndBack) {
  absl::flat_hash_set<ChunkKey> keys;
  for (const Level level : codec::kAllLevels) {
    const ChunkKey key = SomeKey(level);
    EXPECT_EQ(key.Bytes().size(), 33u);
    const auto again = ChunkKey::FromBytes(key.Bytes());
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, key);
    keys.insert(key);
  }
  EXPECT_EQ(keys.size(), codec::kAllLevels.size());
  for (const std::string& wrong : {std::string(), SomeKey().Bytes().substr(1),
                                   SomeKey().Bytes() + 'x', std::string(32, 'a') + '\5'}) {
    EXPECT_EQ(ChunkKey::FromBytes(wrong).status().code(), StatusCode::kInvalidArgument);
  }
}

TEST(StoredChunkTest, SealedAndOpened) {
  for (const size_t payload_bytes : {size_t{0}, size_t{1}, size_t{1000000}}) {
    const StoredChunkPtr sealed = SomeChunk(payload_bytes);
    ASSERT_EQ(sealed->bytes().size(), StoredChunk::kEnvelopeBytes + payload_bytes);
    const auto opened = StoredChunk::Open(Copy(sealed), SomeKey());
    ASSERT_TRUE(opened.ok()) << opened.status();
    for (const StoredChunkPtr& chunk : {sealed, *opened}) {
      EXPECT_EQ(chunk->key(), SomeKey());
      EXPECT_EQ(chunk->first_position(), 512u);
      EXPECT_EQ(chunk->n_tokens(), 256u);
      EXPECT_TRUE(chunk->Verify().ok());
    }
    EXPECT_EQ(Copy(*opened), Copy(sealed));
    EXPECT_TRUE(std::equal((*opened)->payload().begin(), (*opened)->payload().end(),
                           sealed->payload().begin(), sealed->payload().end()));
  }
}

TEST(StoredChunkTest, TheLayoutIsThatOfTheHeader) {
  const std::vector<uint8_t> bytes = Copy(SomeChunk());
  EXPECT_EQ(std::string(bytes.begin(), bytes.begin() + 4), "TDMC");
  EXPECT_THAT(std::vector<uint8_t>(bytes.begin() + 4, bytes.begin() + 8),
              testing::ElementsAre(1, 0, 2, 0));
  EXPECT_EQ(Hex(std::string(bytes.begin() + 8, bytes.begin() + 40)), SomeKey().id.Hex());
  EXPECT_THAT(std::vector<uint8_t>(bytes.begin() + 40, bytes.begin() + 56),
              testing::ElementsAre(0, 2, 0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0));
}

TEST(StoredChunkTest, EveryFlippedBitIsRefused) {
  const std::vector<uint8_t> bytes = Copy(SomeChunk());
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::vector<uint8_t> damaged = bytes;
    damaged[bit / 8] ^= 1u << bit % 8;
    const bool version = bit / 8 == 4 || bit / 8 == 5;
    EXPECT_EQ(StoredChunk::Open(damaged, SomeKey()).status().code(),
              version ? StatusCode::kFailedPrecondition : StatusCode::kDataLoss)
        << bit;
  }
}

TEST(StoredChunkTest, EveryOtherLengthIsRefused) {
  const std::vector<uint8_t> bytes = Copy(SomeChunk());
  for (size_t size = 0; size <= bytes.size() + 64; ++size) {
    std::vector<uint8_t> cut = bytes;
    cut.resize(size);
    EXPECT_EQ(StoredChunk::Open(cut, SomeKey()).status().code(),
              size == bytes.size() ? StatusCode::kOk : StatusCode::kDataLoss)
        << size;
  }
}

TEST(StoredChunkTest, AnotherChunkIsRefused) {
  ChunkKey other = SomeKey();
  other.id.bytes[31] ^= 1;
  for (const ChunkKey& expected : {other, SomeKey(Level::kQ1)}) {
    const auto opened = StoredChunk::Open(Copy(SomeChunk()), expected);
    EXPECT_EQ(opened.status().code(), StatusCode::kDataLoss);
    EXPECT_THAT(std::string(opened.status().message()), testing::HasSubstr("another chunk"));
  }
}

TEST(StoredChunkTest, AnotherVersionIsNamed) {
  std::vector<uint8_t> bytes = Copy(SomeChunk());
  bytes[4] = 2;
  const auto opened = StoredChunk::Open(bytes, SomeKey());
  EXPECT_EQ(opened.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(opened.status().message(), "stored chunk of version 2; this build reads version 1");
}

TEST(StoredChunkTest, VerifySeesDecay) {
  const StoredChunkPtr chunk = SomeChunk();
  ASSERT_TRUE(chunk->Verify().ok());
  const_cast<uint8_t&>(chunk->payload()[3]) ^= 4;
  EXPECT_EQ(chunk->Verify().code(), StatusCode::kDataLoss);
}

}  // namespace
}  // namespace tandem::kvstore
