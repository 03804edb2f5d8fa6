// `tandem kv ls|stat|rm|pin` against real stores in this process, behind a router that answers from
// a script.
#include <gmock/gmock.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/grpc_server.h"
#include "cli/kv.h"
#include "cli/table.h"
#include "kvstore/store.h"
#include "tandem/v1/cluster.grpc.pb.h"
#include "tandem/v1/inference.grpc.pb.h"
#include "tests/unit/cli/call.h"
#include "workers/store_service.h"

namespace tandem::cli {
namespace {

using kvstore::ChunkId;
using kvstore::Level;
using kvstore::Store;
using kvstore::StoredChunk;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;

constexpr uint32_t kChunkTokens = 4;
const std::string kNamespace(32, 'n');

/// The id begins with these eight digits.
ChunkId Id(uint32_t digits) {
  ChunkId id;
  id.bytes.fill(0xCD);
  for (int i = 0; i < 4; ++i) id.bytes[i] = static_cast<uint8_t>(digits >> (24 - 8 * i));
  return id;
}

/// A node with a store in memory; or, without one, a node that keeps nothing.
class Node {
 public:
  explicit Node(bool keeps_chunks = true) {
    if (keeps_chunks) {
      auto store = Store::Open({.memory_bytes = 64 << 20});
      EXPECT_TRUE(store.ok()) << store.status();
      store_ = *std::move(store);
      service_ = std::make_unique<workers::StoreServiceImpl>(store_.get());
    }
    GrpcServerOptions options{.listen = "127.0.0.1:0"};
    if (service_ != nullptr) options.services.push_back(service_.get());
    auto server = StartGrpcServer(options);
    EXPECT_TRUE(server.ok()) << server.status();
    grpc_ = *std::move(server);
  }
  ~Node() {
    grpc_.server->Shutdown();
    grpc_.server->Wait();
  }

  std::string address() const { return "127.0.0.1:" + std::to_string(grpc_.port); }
  Store& store() { return *store_; }
  void Put(const ChunkId& id, Level level = Level::kLossless, uint32_t first_position = 0) {
    const std::vector<uint8_t> payload(936, 7);
    store_->Put(StoredChunk::Seal({id, level}, first_position, kChunkTokens, payload));
  }
  bool Holds(const ChunkId& id) { return store_->Find({&id, 1})[0].levels != 0; }

 private:
  std::unique_ptr<Store> store_;
  std::unique_ptr<workers::StoreServiceImpl> service_;
  GrpcServer grpc_;
};

/// Knows the nodes it is told; a character is a token, after a 1 for BOS.
class Router final : public v1::InferenceService::Service, public v1::ClusterService::Service {
 public:
  Router() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(static_cast<v1::InferenceService::Service*>(this));
    builder.RegisterService(static_cast<v1::ClusterService::Service*>(this));
    server_ = builder.BuildAndStart();
  }
  ~Router() override { server_->Shutdown(std::chrono::system_clock::now()); }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  void Add(const std::string& name, v1::Phase phase, const std::string& node) {
    v1::WorkerInfo& info = *workers.add_workers()->mutable_info();
    info.set_name(name);
    info.set_phase(phase);
    info.set_grpc_address(node);
    if (phase != v1::PHASE_PREFILL) return;
    info.set_kv_namespace(kNamespace);
    info.set_chunk_tokens(kChunkTokens);
  }

  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    response->add_token_ids(1);
    for (const char c : request->text()) response->add_token_ids(c);
    return grpc::Status::OK;
  }
  grpc::Status ListWorkers(grpc::ServerContext* context, const v1::ListWorkersRequest*,
                           v1::ListWorkersResponse* response) override {
    if (interrupt) {
      kill(getpid(), SIGINT);
      while (!context->IsCancelled()) std::this_thread::yield();
    }
    *response = workers;
    return grpc::Status::OK;
  }

  v1::ListWorkersResponse workers;
  bool interrupt = false;

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

/// The ids that the scripted router's prefill workers have for a prompt.
std::vector<ChunkId> IdsOf(const std::string& prompt, const std::string& tenant = "default") {
  std::vector<int32_t> tokens = {1};
  tokens.insert(tokens.end(), prompt.begin(), prompt.end());
  return kvstore::ChunkIds(kNamespace, tenant, tokens, kChunkTokens);
}

std::vector<nlohmann::json> JsonLines(const std::string& text) {
  std::vector<nlohmann::json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

/// Two nodes that keep chunks, and one that does not.
class KvStoreTest : public testing::Test {
 protected:
  KvStoreTest() {
    router_.Add("prefill-1", v1::PHASE_PREFILL, prefill_.address());
    router_.Add("decode-1", v1::PHASE_DECODE, decode_.address());
    router_.Add("store-1", v1::PHASE_STORE, store_.address());
  }
  template <typename Command>
  Outcome Run(Command command, std::vector<std::string> args) {
    return Call(command, std::move(args), router_.address());
  }
  /// A node that is registered and does not answer.
  void AddDead() { router_.Add("dead-1", v1::PHASE_STORE, "127.0.0.1:1"); }

  Node prefill_, decode_{false}, store_;
  Router router_;
};

// ------------------------------------------------------------------ ls

TEST_F(KvStoreTest, LsShowsATable) {
  prefill_.Put(Id(0x11111111), Level::kLossless, 256);
  store_.Put(Id(0x22222222), Level::kQ3);
  store_.store().SetPinned(Id(0x22222222), true);
  const Outcome outcome = Run(RunKvLs, {});
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(outcome.out,
            "ID                LEVEL     TIER    POSITION  TOKENS       BYTES  PINNED  NODE\n"
            "11111111cdcdcdcd  lossless  memory       256       4        1000  -       prefill-1\n"
            "22222222cdcdcdcd  q3        memory         0       4        1000  yes     store-1\n"
            "2 entries, 2000 bytes\n");
}

TEST_F(KvStoreTest, LsOfNothing) {
  const Outcome outcome = Run(RunKvLs, {});
  EXPECT_EQ(outcome.code, kOk);
  EXPECT_EQ(outcome.out, "0 entries, 0 bytes\n");
}

TEST_F(KvStoreTest, LsChoosesAndWritesWholeIds) {
  for (uint32_t n = 0; n < 30; ++n) prefill_.Put(Id(0xAB000000 + n));
  store_.Put(Id(0xCD000000));
  EXPECT_THAT(Run(RunKvLs, {"--id=cd", "--long"}).out,
              AllOf(HasSubstr(Id(0xCD000000).Hex()), HasSubstr("1 entry, 1000 bytes\n")));
  EXPECT_THAT(Run(RunKvLs, {"--limit=5"}).out, HasSubstr("5 entries"));
  EXPECT_THAT(Run(RunKvLs, {"--node", store_.address()}).out,
              AllOf(HasSubstr(store_.address() + "\n"), HasSubstr("1 entry")));
  const Outcome wrong = Run(RunKvLs, {"--id=xy", "--node", store_.address()});
  EXPECT_THAT(wrong.err, HasSubstr("id_prefix is 'xy'"));
  EXPECT_NE(wrong.code, kOk);
}

TEST_F(KvStoreTest, LsWritesJson) {
  prefill_.Put(Id(0x11111111), Level::kQ1, 8);
  const auto lines = JsonLines(Run(RunKvLs, {"--json"}).out);
  ASSERT_THAT(lines, SizeIs(1));
  EXPECT_EQ(lines[0], nlohmann::json({{"id", Id(0x11111111).Hex()},
                                      {"level", "q1"},
                                      {"tier", "memory"},
                                      {"first_position", 8},
                                      {"n_tokens", 4},
                                      {"bytes", 1000},
                                      {"pinned", false},
                                      {"node", "prefill-1"}}));
}

TEST_F(KvStoreTest, ANodeThatDoesNotAnswerIsNamedAndTheOthersAreServed) {
  AddDead();
  store_.Put(Id(0x22222222));
  const Outcome outcome = Run(RunKvLs, {});
  EXPECT_EQ(outcome.code, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("tandem: UNAVAILABLE: dead-1 (127.0.0.1:1): "));
  EXPECT_THAT(outcome.out, HasSubstr("22222222cdcdcdcd"));
}

TEST_F(KvStoreTest, NobodyKeepsChunks) {
  router_.workers.Clear();
  router_.Add("decode-1", v1::PHASE_DECODE, decode_.address());
  const Outcome none = Run(RunKvLs, {});
  EXPECT_EQ(none.code, kFailed);
  EXPECT_THAT(none.err,
              AllOf(HasSubstr("knows no node that keeps chunks"), HasSubstr("'tandem status'")));
  const Outcome direct = Run(RunKvLs, {"--node", decode_.address()});
  EXPECT_EQ(direct.code, kFailed);
  EXPECT_THAT(direct.err, HasSubstr("UNIMPLEMENTED: " + decode_.address()));
}

TEST_F(KvStoreTest, NoRouter) {
  const Outcome outcome = Call(RunKvLs, {"--router=127.0.0.1:1"}, "");
  EXPECT_EQ(outcome.code, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("hint: is a router listening on 127.0.0.1:1?"));
}

TEST_F(KvStoreTest, CtrlCStops) {
  router_.interrupt = true;
  EXPECT_EQ(Run(RunKvLs, {}).code, kInterrupted);
}

// ------------------------------------------------------------------ rm and pin

TEST_F(KvStoreTest, RmDropsAChunkEverywhere) {
  for (Node* node : {&prefill_, &store_}) node->Put(Id(0x11111111));
  store_.Put(Id(0x22222222));
  const Outcome outcome = Run(RunKvRm, {"11111111"});
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  EXPECT_EQ(outcome.out, "prefill-1: 1 removed\nstore-1: 1 removed\n");
  EXPECT_FALSE(prefill_.Holds(Id(0x11111111)));
  EXPECT_FALSE(store_.Holds(Id(0x11111111)));
  EXPECT_TRUE(store_.Holds(Id(0x22222222)));
}

TEST_F(KvStoreTest, RmTakesSeveralIdsOnOneNode) {
  for (const uint32_t n : {0x11111111, 0x22222222, 0x33333333}) {
    prefill_.Put(Id(n));
    store_.Put(Id(n));
  }
  const Outcome outcome =
      Run(RunKvRm, {"--node", store_.address(), Id(0x11111111).Hex(), "22222222CDCD"});
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  EXPECT_EQ(outcome.out, store_.address() + ": 2 removed\n");
  EXPECT_TRUE(prefill_.Holds(Id(0x11111111)));
  EXPECT_TRUE(store_.Holds(Id(0x33333333)));
}

TEST_F(KvStoreTest, RmAll) {
  for (uint32_t n = 0; n < 1500; ++n) prefill_.Put(Id(n));
  store_.Put(Id(1));
  EXPECT_EQ(Run(RunKvRm, {"--all"}).out, "prefill-1: 1500 removed\nstore-1: 1 removed\n");
  EXPECT_EQ(Run(RunKvLs, {}).out, "0 entries, 0 bytes\n");
  const Outcome again = Run(RunKvRm, {"--all"});
  EXPECT_EQ(again.code, kOk);
  EXPECT_EQ(again.out, "nothing was held\n");
}

TEST_F(KvStoreTest, RmSaysWhatIsWrongWithAnId) {
  ChunkId twin = Id(0x11111111);
  twin.bytes[31] = 0;
  prefill_.Put(Id(0x11111111));
  store_.Put(twin);
  const Outcome ambiguous = Run(RunKvRm, {"11111111"});
  EXPECT_EQ(ambiguous.code, kUsage);
  EXPECT_THAT(ambiguous.err, AllOf(HasSubstr("11111111 fits 2 chunks, give more digits"),
                                   HasSubstr(twin.Hex()), HasSubstr(Id(0x11111111).Hex())));
  EXPECT_TRUE(prefill_.Holds(Id(0x11111111)));
  for (const char* word : {"1111111", "11111111x", "no"}) {
    const Outcome outcome = Run(RunKvRm, {word});
    EXPECT_EQ(outcome.code, kUsage) << word;
    EXPECT_THAT(outcome.err, HasSubstr("is no chunk id")) << word;
  }
  const Outcome unknown = Run(RunKvRm, {"99999999"});
  EXPECT_EQ(unknown.code, kFailed);
  EXPECT_THAT(unknown.err, HasSubstr("no node that answered holds a chunk whose id begins with"));
  const Outcome whole = Run(RunKvRm, {Id(0x99999999).Hex()});
  EXPECT_EQ(whole.code, kFailed);
  EXPECT_THAT(whole.err, HasSubstr("nothing was removed"));
}

TEST_F(KvStoreTest, ChunksAreNamedInOneWay) {
  for (const auto& args : std::vector<std::vector<std::string>>{
           {}, {"--all", "11111111"}, {"--prompt=x", "11111111"}, {"--prompt=x", "--all"}}) {
    const Outcome outcome = Run(RunKvRm, args);
    EXPECT_EQ(outcome.code, kUsage);
    EXPECT_THAT(outcome.err, HasSubstr("which chunks? Give either IDs, a prompt, or --all"));
  }
  EXPECT_EQ(Run(RunKvPin, {}).code, kUsage);
  EXPECT_THAT(Run(RunKvRm, {"--prompt=x", "--prompt-file=y"}).err, HasSubstr("not both"));
}

TEST_F(KvStoreTest, AFailedNodeIsToldOnce) {
  AddDead();
  prefill_.Put(Id(0x11111111));
  const Outcome outcome = Run(RunKvRm, {"11111111"});
  EXPECT_EQ(outcome.code, kFailed);
  EXPECT_EQ(outcome.out, "prefill-1: 1 removed\n");
  const size_t first = outcome.err.find("dead-1");
  ASSERT_NE(first, std::string::npos);
  EXPECT_EQ(outcome.err.find("dead-1", first + 1), std::string::npos);
}

TEST_F(KvStoreTest, PinsByIdAndByPrompt) {
  const auto ids = IdsOf("once upon");
  ASSERT_THAT(ids, SizeIs(2));
  prefill_.Put(ids[0]);
  prefill_.Put(Id(0x11111111));
  EXPECT_EQ(Run(RunKvPin, {"--prompt=once upon"}).out, "prefill-1: 1 pinned\n");
  EXPECT_EQ(Run(RunKvPin, {"11111111"}).out, "prefill-1: 1 pinned\n");
  EXPECT_EQ(prefill_.store().stats().pins, 2u);
  EXPECT_EQ(Run(RunKvPin, {"--off", "11111111"}).out, "prefill-1: 1 unpinned\n");
  EXPECT_EQ(prefill_.store().stats().pins, 1u);
}

TEST_F(KvStoreTest, RmByPromptIsTheTenantsOwn) {
  const auto ids = IdsOf("once upon", "acme"), others = IdsOf("once upon");
  for (const ChunkId& id : ids) store_.Put(id);
  for (const ChunkId& id : others) store_.Put(id);
  const std::string path = testing::TempDir() + "kv_prompt_" + std::to_string(getpid());
  std::ofstream(path) << "once upon";
  EXPECT_EQ(Run(RunKvRm, {"--prompt-file", path, "--tenant=acme"}).out, "store-1: 2 removed\n");
  unlink(path.c_str());
  EXPECT_FALSE(store_.Holds(ids[0]));
  EXPECT_TRUE(store_.Holds(others[0]));
  const Outcome missing = Run(RunKvRm, {"--prompt-file", path});
  EXPECT_EQ(missing.code, kUsage);
  EXPECT_THAT(missing.err, HasSubstr("cannot be read"));
}

TEST_F(KvStoreTest, APromptThatIsShorterThanAChunk) {
  EXPECT_EQ(Run(RunKvRm, {"--prompt=ab"}).out,
            "the prompt has 3 tokens, less than a chunk of 4: nothing of it is kept\n");
  EXPECT_EQ(Run(RunKvStat, {"--prompt=ab"}).out,
            "0 of 3 tokens of the prompt are cached (0.0 %), in chunks of 4\n");
}

// ------------------------------------------------------------------ stat

TEST_F(KvStoreTest, StatShowsTiersAndTotals) {
  prefill_.Put(Id(0x11111111));
  store_.Put(Id(0x11111111));
  store_.Put(Id(0x22222222));
  prefill_.store().Fetch({Id(0x11111111), Level::kLossless}, [](const auto&) {});
  prefill_.store().CountMiss();
  store_.store().SetPinned(Id(0x22222222), true);
  const Outcome outcome = Run(RunKvStat, {});
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("NODE       TIER    USED"));
  EXPECT_THAT(outcome.out, testing::ContainsRegex("prefill-1 +memory .* 64.0 MiB +1 +1 +50.0 % "));
  EXPECT_THAT(outcome.out, testing::ContainsRegex("store-1 +memory .* 64.0 MiB +2 +0 +- "));
  EXPECT_THAT(outcome.out, testing::ContainsRegex("all +memory .* 128.0 MiB +3 +1 +50.0 % "));
  EXPECT_THAT(outcome.out, HasSubstr(" well\n"));
  EXPECT_THAT(outcome.out,
              HasSubstr("1 of 2 chunks that were asked for were found (50.0 %); 1 pinned\n"));
  EXPECT_EQ(Run(RunKvStat, {"a prompt"}).code, kUsage);
}

TEST_F(KvStoreTest, StatOfNewNodes) {
  EXPECT_THAT(Run(RunKvStat, {}).out, HasSubstr("no chunk has been asked for; 0 pinned\n"));
}

TEST_F(KvStoreTest, StatWritesJson) {
  store_.Put(Id(0x11111111));
  const auto lines = JsonLines(Run(RunKvStat, {"--json"}).out);
  ASSERT_THAT(lines, SizeIs(1));
  const auto& nodes = lines[0]["nodes"];
  ASSERT_THAT(nodes, SizeIs(2));
  EXPECT_EQ(nodes[1]["node"], "store-1");
  EXPECT_EQ(nodes[1]["address"], store_.address());
  EXPECT_EQ(nodes[1]["tiers"][0]["tier"], "memory");
  EXPECT_EQ(nodes[1]["tiers"][0]["chunks"], 1);
  EXPECT_EQ(nodes[1]["tiers"][0]["healthy"], true);
  EXPECT_EQ(nodes[1]["misses"], 0);
}

TEST_F(KvStoreTest, StatOfAPromptSaysWhereItIs) {
  const auto ids = IdsOf("once upon a time");
  ASSERT_THAT(ids, SizeIs(4));
  prefill_.Put(ids[0]);
  store_.Put(ids[0], Level::kQ1);
  store_.Put(ids[0], Level::kQ4);
  store_.Put(ids[1], Level::kQ2);
  store_.Put(ids[3]);
  const Outcome outcome = Run(RunKvStat, {"--prompt", "once upon a time"});
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  EXPECT_EQ(outcome.out,
            "TOKENS  ID                HELD BY\n"
            "0-3     " +
                ids[0].Hex().substr(0, 16) +
                "  prefill-1 lossless (memory), store-1 q1/q4 (memory)\n"
                "4-7     " +
                ids[1].Hex().substr(0, 16) +
                "  store-1 q2 (memory)\n"
                "8-11    " +
                ids[2].Hex().substr(0, 16) +
                "  -\n"
                "12-15   " +
                ids[3].Hex().substr(0, 16) +
                "  store-1 lossless (memory)\n"
                "8 of 17 tokens of the prompt are cached (47.1 %), in chunks of 4\n"
                "by the coarsest level that is allowed: lossless 4, q1 4, q2 8, q3 8, q4 8\n");
  const auto lines = JsonLines(Run(RunKvStat, {"--json", "--prompt", "once upon a time"}).out);
  ASSERT_THAT(lines, SizeIs(1));
  EXPECT_EQ(lines[0]["n_tokens"], 17);
  EXPECT_EQ(lines[0]["cached_tokens_by_floor"]["lossless"], 4);
  EXPECT_EQ(lines[0]["chunks"][1]["held"][0]["level"], "q2");
  EXPECT_EQ(lines[0]["chunks"][3]["first_position"], 12);
  EXPECT_THAT(Run(RunKvStat, {"--tenant=acme", "--prompt", "once upon a time"}).out,
              HasSubstr("0 of 17 tokens"));
}

TEST_F(KvStoreTest, APromptNeedsAPrefillWorker) {
  router_.workers.Clear();
  router_.Add("store-1", v1::PHASE_STORE, store_.address());
  const Outcome outcome = Run(RunKvStat, {"--prompt=once upon"});
  EXPECT_EQ(outcome.code, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("knows no prefill worker that keeps chunks"));
}

TEST_F(KvStoreTest, HelpIsThereForEachCommand) {
  for (auto* command : {RunKvLs, RunKvStat, RunKvRm, RunKvPin}) {
    const Outcome outcome = Call(command, {"--help"}, "");
    EXPECT_EQ(outcome.code, kOk);
    EXPECT_THAT(outcome.out, AllOf(HasSubstr("--router=HOST:PORT"), HasSubstr("--node=HOST:PORT")));
  }
  EXPECT_THAT(Call(RunKv, {"help"}, "").out,
              AllOf(HasSubstr("\n  ls "), HasSubstr("\n  profile "), Not(HasSubstr("no router."))));
}

TEST(Table, AlignsColumns) {
  EXPECT_EQ(Table({{"A", "LONG"}, {"word", "x"}}), "A     LONG\nword  x\n");
}

TEST(Bytes, HaveAUnitThatFits) {
  EXPECT_EQ(Bytes(0), "0 B");
  EXPECT_EQ(Bytes(1023), "1023 B");
  EXPECT_EQ(Bytes(1024), "1.0 KiB");
  EXPECT_EQ(Bytes(uint64_t{3} << 29), "1.5 GiB");
  EXPECT_EQ(Bytes(uint64_t{5} << 50), "5120.0 TiB");
}

}  // namespace
}  // namespace tandem::cli
