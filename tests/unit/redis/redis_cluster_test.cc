// The Redis tier on a real cluster of three: where keys are, slots that move, a node that dies.
#include "kvstore/tiers/redis_cluster.h"

#include <gmock/gmock.h>

#include <random>

#include "tests/unit/redis/redis_server.h"

namespace tandem::kvstore {
namespace {

using absl::StatusCode;

constexpr absl::Duration kAmple = absl::Seconds(20);
constexpr int kKeys = 60;

class RedisClusterTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (RedisServer::Installed()) cluster_ = new RedisCluster();
  }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }
  void SetUp() override {
    if (cluster_ == nullptr) GTEST_SKIP() << "NOT TESTED: Debian's redis-tools are not installed";
    for (size_t i = 0; i < 3; ++i) cluster_->node(i).Run({"FLUSHALL"});
    tier_ = MakeTier(Options());
  }
  RedisTierOptions Options() {
    return {
        .nodes = {cluster_->node(0).Address()}, .timeout = kAmple, .now = [this] { return now_; }};
  }

  static std::vector<ChunkKey> Keys() {
    std::vector<ChunkKey> keys;
    for (int i = 0; i < kKeys; ++i) keys.push_back(KeyOf(i));
    return keys;
  }
  void PutAll() {
    for (int i = 0; i < kKeys; ++i) ASSERT_TRUE(tier_->Put(ChunkOf(i)).ok());
  }
  /// Which keys are on the node.
  static std::vector<bool> On(size_t node) {
    std::vector<bool> on;
    for (int i = 0; i < kKeys; ++i) {
      on.push_back(cluster_->OwnerOf(redis::SlotOf(NameOf(i))) == node);
    }
    return on;
  }
  /// Hands the slot of chunk `number` to the next node; `finish` false: leaves it half done, with
  /// the key already there.
  static void MoveSlot(int number, bool finish) {
    const uint16_t slot = redis::SlotOf(NameOf(number));
    const size_t from = cluster_->OwnerOf(slot), to = (from + 1) % 3;
    const std::string text = std::to_string(slot), name = NameOf(number);
    const std::string from_id = cluster_->NodeId(from), to_id = cluster_->NodeId(to);
    const std::string port = std::to_string(cluster_->node(to).port());
    EXPECT_EQ(cluster_->node(to).Run({"CLUSTER", "SETSLOT", text, "IMPORTING", from_id}), "OK");
    EXPECT_EQ(cluster_->node(from).Run({"CLUSTER", "SETSLOT", text, "MIGRATING", to_id}), "OK");
    EXPECT_EQ(cluster_->node(from).Run({"MIGRATE", "127.0.0.1", port, name, "0", "9000"}), "OK");
    if (finish) FinishMove(slot, from, to);
  }
  static void FinishMove(uint16_t slot, size_t from, size_t to) {
    for (const size_t node : {to, from}) {
      EXPECT_EQ(cluster_->node(node).Run(
                    {"CLUSTER", "SETSLOT", std::to_string(slot), "NODE", cluster_->NodeId(to)}),
                "OK");
    }
  }

  static RedisCluster* cluster_;
  absl::Time now_ = absl::Now();
  std::unique_ptr<Tier> tier_;
};
RedisCluster* RedisClusterTest::cluster_ = nullptr;

TEST_F(RedisClusterTest, SlotsAreThoseOfRedis) {
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    std::string key(1 + random() % 40, '\0');
    // Many braces: what stands between them is all that counts.
    for (char& c : key) c = random() % 3 ? static_cast<char>(random()) : "{}"[random() % 2];
    EXPECT_EQ(std::to_string(redis::SlotOf(key)),
              cluster_->node(0).Run({"CLUSTER", "KEYSLOT", key}));
  }
}

TEST_F(RedisClusterTest, KeysAreFoundOnAllNodes) {
  PutAll();
  for (size_t node = 0; node < 3; ++node) {
    EXPECT_NE(cluster_->node(node).Run({"DBSIZE"}), "0");
  }
  EXPECT_THAT(tier_->Contains(Keys()), testing::Each(true));
  for (int i = 0; i < kKeys; ++i) EXPECT_TRUE(tier_->Get(KeyOf(i)).ok()) << i;
  for (int i = 0; i < kKeys; ++i) tier_->Erase(KeyOf(i));
  EXPECT_THAT(tier_->Contains(Keys()), testing::Each(false));
  EXPECT_EQ(tier_->stats().failures, 0u);
}

TEST_F(RedisClusterTest, EachKeyIsAskedForAtItsOwnNode) {
  PutAll();
  for (size_t node = 0; node < 3; ++node) cluster_->node(node).Run({"CONFIG", "RESETSTAT"});
  EXPECT_THAT(tier_->Contains(Keys()), testing::Each(true));
  for (size_t node = 0; node < 3; ++node) {
    const std::string errors = cluster_->node(node).Run({"INFO", "errorstats"});
    EXPECT_EQ(errors.find("MOVED"), std::string::npos) << errors;
  }
}

TEST_F(RedisClusterTest, ASlotThatHasMoved) {
  PutAll();
  MoveSlot(1, true);
  EXPECT_THAT(tier_->Contains(Keys()), testing::Each(true));
  EXPECT_TRUE(tier_->Get(KeyOf(1)).ok());
  EXPECT_EQ(tier_->stats().failures, 0u);
}

TEST_F(RedisClusterTest, ASlotThatIsMoving) {
  PutAll();
  const uint16_t slot = redis::SlotOf(NameOf(2));
  const size_t owner = cluster_->OwnerOf(slot);
  MoveSlot(2, false);
  EXPECT_THAT(tier_->Contains(Keys()), testing::Each(true));
  EXPECT_TRUE(tier_->Get(KeyOf(2)).ok());
  EXPECT_TRUE(tier_->Put(ChunkOf(2)).ok());
  FinishMove(slot, owner, (owner + 1) % 3);
  EXPECT_TRUE(tier_->Get(KeyOf(2)).ok());
  EXPECT_EQ(tier_->stats().failures, 0u);
}

TEST_F(RedisClusterTest, ADeadNode) {
  PutAll();
  const std::vector<bool> lost = On(1);
  cluster_->node(1).Kill();
  std::vector<bool> rest = lost;
  rest.flip();
  EXPECT_EQ(tier_->Contains(Keys()), rest);
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < kKeys; ++i) {
      EXPECT_EQ(tier_->Get(KeyOf(i)).status().code(),
                lost[i] ? StatusCode::kUnavailable : StatusCode::kOk)
          << i;
    }
  }
  EXPECT_FALSE(tier_->stats().healthy);
  // The survivors learn that it is gone; the keys of theirs stay to be had.
  EXPECT_TRUE(Eventually([] {
    return cluster_->node(0).Run({"CLUSTER", "INFO"}).find("cluster_slots_fail:0") ==
           std::string::npos;
  }));
  EXPECT_EQ(tier_->Contains(Keys()), rest);
  // One that starts without the dead node's neighbours' map finds them as well.
  RedisTierOptions options = Options();
  options.nodes = {cluster_->node(1).Address(), cluster_->node(2).Address()};
  EXPECT_EQ(MakeTier(options)->Contains(Keys()), rest);

  cluster_->node(1).Restart();
  EXPECT_TRUE(Eventually([&] {
    now_ += options.retry_after;
    tier_->Contains(Keys());  // asks all nodes
    return tier_->stats().healthy;
  }));
}

TEST_F(RedisClusterTest, AFrozenNodeLeavesTimeForTheOthers) {
  PutAll();
  RedisTierOptions options = Options();
  options.timeout = absl::Milliseconds(500);
  const std::vector<bool> lost = On(2);
  std::vector<bool> rest = lost;
  rest.flip();
  const auto hurried = MakeTier(options);
  ASSERT_TRUE(
      Eventually([&] { return hurried->Contains(Keys()) == std::vector<bool>(kKeys, true); }));
  cluster_->node(2).Freeze();
  // The first call may lose the others' time to it; then they come first, and then it is left
  // alone.
  EXPECT_TRUE(Eventually([&] { return hurried->Contains(Keys()) == rest; }));
  EXPECT_TRUE(Eventually([&] {
    hurried->Contains(Keys());
    return !hurried->stats().healthy;
  }));
  const absl::Time start = absl::Now();
  for (int i = 0; i < 100; ++i) EXPECT_EQ(hurried->Contains(Keys()), rest);
  EXPECT_LT(absl::Now() - start, 10 * options.timeout);
  cluster_->node(2).Thaw();
}

}  // namespace
}  // namespace tandem::kvstore
