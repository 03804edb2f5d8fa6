// What concerns several properties at once, and values that follow from others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/config.h"

namespace tandem::server {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

Config Good(Role role) {
  Config config;
  config.role = role;
  config.model = "m.gguf";
  if (role == Role::kWorker) {
    config.phase = Phase::kPrefill;
    config.routers = {"127.0.0.1:8470"};
  }
  return config;
}

std::string Fault(const Config& config) { return std::string(Validate(config).message()); }

TEST(Validate, DefaultsNeedOnlyAModel) {
  for (const Role role : {Role::kAll, Role::kRouter, Role::kWorker}) {
    EXPECT_TRUE(Validate(Good(role)).ok()) << RoleName(role);
    Config config = Good(role);
    config.model.clear();
    EXPECT_THAT(Fault(config), AllOf(HasSubstr("model is not set"),
                                     HasSubstr("role '" + std::string(RoleName(role)) + "'")));
  }
}

TEST(Validate, StoresNeedRoutersAndMemoryButNoModel) {
  Config config = Good(Role::kStore);
  config.model.clear();
  config.routers.clear();
  EXPECT_THAT(Fault(config), AllOf(HasSubstr("routers is empty"), HasSubstr("'store'")));
  config.routers = {"router:8470"};
  EXPECT_TRUE(Validate(config).ok()) << Validate(config);
  config.kv_memory_bytes = 0;
  EXPECT_THAT(Fault(config), HasSubstr("kv_memory_bytes is 0"));
}

TEST(Validate, TiersNeedTheCacheThatTheyBelongTo) {
  Config config = Good(Role::kAll);
  config.kv_memory_bytes = 0;
  EXPECT_TRUE(Validate(config).ok());
  config.kv_disk_path = "/var/lib/tandem";
  EXPECT_THAT(Fault(config), HasSubstr("kv_disk_path"));
}

TEST(Validate, WorkersNeedRoutersAndAPhaseToPin) {
  Config config = Good(Role::kWorker);
  config.phase.reset();
  EXPECT_TRUE(Validate(config).ok()) << "the planner's";
  config.phase_pinned = true;
  EXPECT_THAT(Fault(config), HasSubstr("phase is auto"));
  config = Good(Role::kWorker);
  config.routers.clear();
  EXPECT_THAT(Fault(config), HasSubstr("routers is empty"));
}

TEST(Validate, ListenersStayOnThisMachineUnlessToldOtherwise) {
  struct Case {
    std::string Config::*listener;
    const char* name;
    Role role;
  };
  for (const Case& c : {Case{&Config::listen, "listen", Role::kRouter},
                        Case{&Config::metrics_listen, "metrics_listen", Role::kRouter},
                        Case{&Config::worker_listen, "worker_listen", Role::kWorker},
                        Case{&Config::data_listen, "data_listen", Role::kWorker},
                        Case{&Config::listen, "listen", Role::kAll}}) {
    for (const char* address : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "node:1"}) {
      Config config = Good(c.role);
      config.*c.listener = address;
      const absl::Status status = Validate(config);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.name << address;
      EXPECT_THAT(std::string(status.message()),
                  AllOf(HasSubstr(std::string(c.name) + " is '" + address), HasSubstr("insecure"),
                        Not(HasSubstr("--tls"))));
      config.insecure = true;
      EXPECT_TRUE(Validate(config).ok()) << c.name << address;
    }
    Config config = Good(c.role);
    config.*c.listener = "localhost:1";
    EXPECT_TRUE(Validate(config).ok());
  }
}

TEST(Validate, ListenersOfOtherRolesDoNotCount) {
  Config config = Good(Role::kWorker);
  config.listen = "0.0.0.0:8470";
  EXPECT_TRUE(Validate(config).ok());
  for (const Role role : {Role::kRouter, Role::kAll}) {
    config = Good(role);
    config.data_listen = "0.0.0.0:1";
    EXPECT_TRUE(Validate(config).ok());
  }
}

TEST(Validate, SizesFitEachOther) {
  Config config = Good(Role::kAll);
  config.context_tokens = 128;
  EXPECT_EQ(Fault(config), "chunk_tokens is 256, more than context_tokens, which is 128");
  config = Good(Role::kAll);
  config.step_tokens = 8;
  EXPECT_THAT(Fault(config), HasSubstr("step_tokens is 8, less than decode_sequences"));
  config = Good(Role::kRouter);
  config.max_prompt_bytes = config.max_message_bytes + 1;
  EXPECT_THAT(Fault(config), HasSubstr("max_prompt_bytes is"));
  config = Good(Role::kRouter);
  config.tenants.clear();
  EXPECT_THAT(Fault(config), HasSubstr("tenants is empty"));
  config = Good(Role::kAll);
  config.worker_timeout = absl::Milliseconds(400);
  EXPECT_EQ(Fault(config),
            "worker_timeout is 400ms, less than twice report_interval, which is 250ms");
}

TEST(Validate, QuantisedValuesNeedFlashAttention) {
  Config config = Good(Role::kAll);
  config.v_type = "q8_0";
  EXPECT_TRUE(Validate(config).ok());
  config.flash_attention = false;
  EXPECT_THAT(Fault(config), AllOf(HasSubstr("v_type is 'q8_0'"), HasSubstr("flash_attention")));
  config.v_type = "bf16";
  config.k_type = "q8_0";
  EXPECT_TRUE(Validate(config).ok());
}

TEST(Warnings, MoreThreadsThanCores) {
  Config config = Good(Role::kAll);
  config.cpus = {0, 1};
  EXPECT_TRUE(Warnings(config).empty());
  config.threads = 2;
  ASSERT_EQ(Warnings(config).size(), 1u);
  EXPECT_THAT(Warnings(config)[0], HasSubstr("4 engine threads on 2 cores"));
  EXPECT_TRUE(Validate(config).ok());
}

TEST(Warnings, WorkerThatItsRoutersCannotReach) {
  Config config = Good(Role::kWorker);
  config.routers = {"router:8470"};
  ASSERT_EQ(Warnings(config).size(), 1u);
  EXPECT_THAT(Warnings(config)[0], HasSubstr("router 'router:8470' cannot reach"));
}

TEST(Derived, ThreadsAreSharedAmongTheEngines) {
  Config config = Good(Role::kAll);
  config.cpus = {0, 1, 2, 3, 4};
  EXPECT_EQ(EngineThreads(config), 2u);
  config.cpus = {0};
  EXPECT_EQ(EngineThreads(config), 1u);
  config.role = Role::kWorker;
  config.cpus = {0, 1, 2};
  EXPECT_EQ(EngineThreads(config), 3u);
  config.threads = 7;
  EXPECT_EQ(EngineThreads(config), 7u);
  EXPECT_EQ(EnginesInProcess(Good(Role::kAll)), 2u);
  EXPECT_EQ(EnginesInProcess(Good(Role::kRouter)), 0u);
}

TEST(Derived, NamesTellTheWorkersApart) {
  Config config = Good(Role::kAll);
  EXPECT_NE(WorkerName(config, Phase::kPrefill), WorkerName(config, Phase::kDecode));
  config.name = "n1";
  EXPECT_EQ(WorkerName(config, Phase::kDecode), "n1-decode");
  config.role = Role::kWorker;
  EXPECT_EQ(WorkerName(config, Phase::kDecode), "n1");
  config.name.clear();
  EXPECT_THAT(WorkerName(config, std::nullopt), testing::EndsWith("-worker"));
}

TEST(Derived, AdvertisedHost) {
  Config config = Good(Role::kWorker);
  EXPECT_EQ(AdvertisedHost(config, "127.0.0.1:0"), "127.0.0.1");
  EXPECT_EQ(AdvertisedHost(config, "[::1]:0"), "[::1]");
  EXPECT_THAT(AdvertisedHost(config, "0.0.0.0:0"), Not(HasSubstr("0.0.0.0")));
  EXPECT_FALSE(AdvertisedHost(config, "[::]:0").empty());
  config.advertise_host = "w1.example";
  EXPECT_EQ(AdvertisedHost(config, "0.0.0.0:0"), "w1.example");
  config.advertise_host = "fe80::1";
  EXPECT_EQ(AdvertisedHost(config, "0.0.0.0:0"), "[fe80::1]");
}

}  // namespace
}  // namespace tandem::server
