// The service over a real store, in memory, through a real connection.
#include "workers/store_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "base/grpc_server.h"

namespace tandem::workers {
namespace {

using kvstore::ChunkId;
using kvstore::ChunkKey;
using kvstore::Level;
using kvstore::Store;
using kvstore::StoredChunk;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

ChunkId Id(uint32_t n) {
  ChunkId id;
  id.bytes.fill(0xAB);
  for (int i = 0; i < 4; ++i) id.bytes[i] = static_cast<uint8_t>(n >> (24 - 8 * i));
  return id;
}

std::string Raw(const ChunkId& id) { return {id.bytes.begin(), id.bytes.end()}; }

class StoreServiceTest : public testing::Test {
 protected:
  StoreServiceTest() {
    auto store = Store::Open({.memory_bytes = 64 << 20});
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    service_ = std::make_unique<StoreServiceImpl>(store_.get());
    auto server = StartGrpcServer({.listen = "127.0.0.1:0", .services = {service_.get()}});
    EXPECT_TRUE(server.ok()) << server.status();
    grpc_ = *std::move(server);
    stub_ = v1::StoreService::NewStub(MakeChannel("127.0.0.1:" + std::to_string(grpc_.port)));
  }
  ~StoreServiceTest() override {
    grpc_.server->Shutdown();
    grpc_.server->Wait();
  }

  void Put(uint32_t n, Level level = Level::kLossless) {
    const std::vector<uint8_t> payload(100, 7);
    store_->Put(StoredChunk::Seal({Id(n), level}, n * 256, 256, payload));
  }

  struct Listed {
    grpc::Status status;
    std::vector<v1::ChunkEntry> entries;
    int messages = 0;
  };
  Listed List(const v1::ListChunksRequest& request) {
    grpc::ClientContext context;
    const auto reader = stub_->ListChunks(&context, request);
    Listed listed;
    v1::ListChunksResponse response;
    while (reader->Read(&response)) {
      ++listed.messages;
      EXPECT_LE(response.chunks_size(), 1000);
      listed.entries.insert(listed.entries.end(), response.chunks().begin(),
                            response.chunks().end());
    }
    listed.status = reader->Finish();
    return listed;
  }

  std::unique_ptr<Store> store_;
  std::unique_ptr<StoreServiceImpl> service_;
  GrpcServer grpc_;
  std::unique_ptr<v1::StoreService::Stub> stub_;
};

TEST_F(StoreServiceTest, AnEmptyStoreListsNothing) {
  const Listed listed = List({});
  EXPECT_TRUE(listed.status.ok());
  EXPECT_THAT(listed.entries, SizeIs(0));
}

TEST_F(StoreServiceTest, ListsEveryField) {
  Put(3, Level::kQ2);
  store_->SetPinned(Id(3), true);
  const Listed listed = List({});
  ASSERT_THAT(listed.entries, SizeIs(1));
  const v1::ChunkEntry& entry = listed.entries[0];
  EXPECT_EQ(entry.id(), Raw(Id(3)));
  EXPECT_EQ(entry.level(), "q2");
  EXPECT_EQ(entry.tier(), "memory");
  EXPECT_EQ(entry.first_position(), 768u);
  EXPECT_EQ(entry.n_tokens(), 256u);
  EXPECT_EQ(entry.bytes(), StoredChunk::kEnvelopeBytes + 100);
  EXPECT_TRUE(entry.pinned());
}

TEST_F(StoreServiceTest, AnswersInPieces) {
  for (uint32_t n = 0; n < 2500; ++n) Put(n);
  const Listed listed = List({});
  EXPECT_TRUE(listed.status.ok());
  EXPECT_EQ(listed.messages, 3);
  std::set<std::string> ids;
  for (const auto& entry : listed.entries) ids.insert(entry.id());
  EXPECT_THAT(ids, SizeIs(2500));
}

TEST_F(StoreServiceTest, StopsAtTheLimit) {
  for (uint32_t n = 0; n < 20; ++n) Put(n);
  v1::ListChunksRequest request;
  request.set_limit(7);
  EXPECT_THAT(List(request).entries, SizeIs(7));
  request.set_limit(1000);
  EXPECT_THAT(List(request).entries, SizeIs(20));
}

TEST_F(StoreServiceTest, ChoosesByPrefixAndById) {
  for (uint32_t n : {0x12345678, 0x12345679, 0x1234567f, 0x22345678}) Put(n);
  Put(0x12345678, Level::kQ1);
  v1::ListChunksRequest request;
  for (const auto& [prefix, n] : std::vector<std::pair<std::string, size_t>>{
           {"1", 4}, {"1234567", 4}, {"1234567F", 1}, {"12345678a", 2}, {"12345678b", 0}}) {
    request.set_id_prefix(prefix);
    EXPECT_THAT(List(request).entries, SizeIs(n)) << prefix;
  }
  request.set_id_prefix(Id(0x22345678).Hex());
  EXPECT_THAT(List(request).entries, SizeIs(1));
  request.clear_id_prefix();
  request.add_ids(Raw(Id(0x12345678)));
  request.add_ids(Raw(Id(99)));
  EXPECT_THAT(List(request).entries, SizeIs(2));
}

TEST_F(StoreServiceTest, RefusesWhatIsNoId) {
  v1::ListChunksRequest list;
  list.set_id_prefix("12g4");
  EXPECT_THAT(List(list).status.error_message(), HasSubstr("id_prefix is '12g4'"));
  list.set_id_prefix(std::string(65, 'a'));
  EXPECT_EQ(List(list).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  list.clear_id_prefix();
  list.add_ids("short");
  EXPECT_THAT(List(list).status.error_message(), HasSubstr("ids[0]: 5 bytes"));
  {
    grpc::ClientContext context;
    v1::RemoveChunksRequest request;
    v1::RemoveChunksResponse response;
    request.add_ids(Raw(Id(1)));
    request.add_ids(std::string(33, 'x'));
    const grpc::Status status = stub_->RemoveChunks(&context, request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("ids[1]: 33 bytes; a chunk id has 32"));
  }
  grpc::ClientContext context;
  v1::PinChunksRequest request;
  v1::PinChunksResponse response;
  request.add_ids("");
  EXPECT_EQ(stub_->PinChunks(&context, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(StoreServiceTest, RemovesByIdOrAll) {
  for (uint32_t n = 0; n < 5; ++n) Put(n);
  Put(0, Level::kQ3);
  const auto remove = [&](const v1::RemoveChunksRequest& request, uint64_t& removed) {
    grpc::ClientContext context;
    v1::RemoveChunksResponse response;
    const grpc::Status status = stub_->RemoveChunks(&context, request, &response);
    removed = response.removed();
    return status;
  };
  uint64_t removed = 0;
  v1::RemoveChunksRequest request;
  EXPECT_EQ(remove(request, removed).error_code(), grpc::StatusCode::INVALID_ARGUMENT)
      << "nothing is not all";
  request.add_ids(Raw(Id(0)));
  request.add_ids(Raw(Id(77)));
  EXPECT_TRUE(remove(request, removed).ok());
  EXPECT_EQ(removed, 1u);
  EXPECT_THAT(List({}).entries, SizeIs(4));
  request.set_all(true);
  EXPECT_EQ(remove(request, removed).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.clear_ids();
  EXPECT_TRUE(remove(request, removed).ok());
  EXPECT_EQ(removed, 4u);
  EXPECT_THAT(List({}).entries, SizeIs(0));
}

TEST_F(StoreServiceTest, PinsAndUnpins) {
  Put(1);
  const auto pin = [&](bool pinned) {
    grpc::ClientContext context;
    v1::PinChunksRequest request;
    v1::PinChunksResponse response;
    request.add_ids(Raw(Id(1)));
    request.add_ids(Raw(Id(2)));
    request.set_pinned(pinned);
    EXPECT_TRUE(stub_->PinChunks(&context, request, &response).ok());
    return response.changed();
  };
  EXPECT_EQ(pin(true), 1u);
  EXPECT_TRUE(List({}).entries[0].pinned());
  EXPECT_EQ(pin(false), 1u);
  EXPECT_FALSE(List({}).entries[0].pinned());
}

TEST_F(StoreServiceTest, TellsStatistics) {
  Put(1);
  store_->Fetch({Id(1), Level::kLossless}, [](const auto& fetched) { EXPECT_TRUE(fetched.ok()); });
  store_->CountMiss();
  store_->SetPinned(Id(1), true);
  grpc::ClientContext context;
  v1::GetStoreStatsResponse response;
  ASSERT_TRUE(stub_->GetStoreStats(&context, {}, &response).ok());
  ASSERT_EQ(response.tiers_size(), 1) << "no disk, no Redis";
  const v1::TierState& memory = response.tiers(0);
  EXPECT_EQ(memory.tier(), "memory");
  EXPECT_EQ(memory.chunks(), 1u);
  EXPECT_EQ(memory.hits(), 1u);
  EXPECT_EQ(memory.limit_bytes(), 64u << 20);
  EXPECT_GT(memory.bytes(), 100u);
  EXPECT_TRUE(memory.healthy());
  EXPECT_EQ(response.misses(), 1u);
  EXPECT_EQ(response.pins(), 1u);
}

TEST_F(StoreServiceTest, AClientThatGoesAwayDoesNoHarm) {
  for (uint32_t n = 0; n < 5000; ++n) Put(n);
  {
    grpc::ClientContext context;
    const auto reader = stub_->ListChunks(&context, {});
    v1::ListChunksResponse response;
    ASSERT_TRUE(reader->Read(&response));
    context.TryCancel();
    EXPECT_FALSE(reader->Finish().ok());
  }
  EXPECT_THAT(List({}).entries, SizeIs(5000));
}

}  // namespace
}  // namespace tandem::workers
