// Workloads: as files, scaled, generated.
#include "scheduler/planner/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "scheduler/planner/random.h"

namespace tandem::planner {
namespace {

using testing::HasSubstr;

TEST(Workload, ComesBackFromItsCsv) {
  const Workload workload = {{.prompt_tokens = 5, .output_tokens = 6, .cached_tokens = 2},
                             {.arrival_s = 1.25, .prompt_tokens = 7, .output_tokens = 8}};
  const std::string csv = WorkloadCsv(workload);
  const auto read = ParseWorkload(csv, "w.csv");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(WorkloadCsv(*read), csv);
  EXPECT_EQ(read->at(0).cached_tokens, 2u);
  EXPECT_EQ(read->at(1).arrival_s, 1.25);
}

TEST(Workload, NamesTheFault) {
  const auto fault = [](const std::string& rows) {
    const std::string csv = "arrival_s,prompt_tokens,output_tokens,cached_tokens\n" + rows;
    return std::string(ParseWorkload(csv, "w.csv").status().message());
  };
  EXPECT_EQ(fault(""), "w.csv: has no request");
  EXPECT_THAT(fault("2,1,1,0\n1,1,1,0\n"), HasSubstr("request 2 arrives at 1 s, before"));
  EXPECT_THAT(fault("2,3,1,4\n"), HasSubstr("request 1 has 4 of 3 prompt tokens cached"));
  EXPECT_THAT(fault("2,0,1,0\n"), HasSubstr("w.csv:2: 'prompt_tokens' is '0'"));
}

TEST(Workload, ScalingChangesThePaceAlone) {
  const Workload workload =
      Generate({.shape = NamedShape("code").value(), .requests = 50, .rate_rps = 2});
  const Workload faster = AtRate(workload, 8);
  EXPECT_NEAR(Describe(faster).rate_rps, 8, 1e-9);
  EXPECT_NEAR(Describe(faster).gap_cv, Describe(workload).gap_cv, 1e-9);
  EXPECT_EQ(faster[7].prompt_tokens, workload[7].prompt_tokens);
}

TEST(Generate, HasTheMeansRateAndBurstinessAskedFor) {
  for (const char* name : {"chat", "code", "summarisation"}) {
    const LengthShape shape = NamedShape(name).value();
    for (const double cv : {0.0, 0.5, 1.0, 3.0}) {
      const WorkloadStats stats = Describe(
          Generate({.shape = shape, .requests = 40'000, .rate_rps = 5, .gap_cv = cv, .seed = 3}));
      EXPECT_NEAR(stats.rate_rps, 5, 0.05 * 5) << name << cv;
      EXPECT_NEAR(stats.gap_cv, cv, 0.05 * cv + 1e-9) << name << cv;
      EXPECT_NEAR(stats.mean_prompt_tokens / shape.mean_prompt_tokens, 1, 0.03) << name;
      EXPECT_NEAR(stats.mean_output_tokens / shape.mean_output_tokens, 1, 0.03) << name;
    }
  }
  EXPECT_THAT(NamedShape("mail").status().message(), HasSubstr("chat, code and summarisation"));
}

TEST(Generate, FitsTheContext) {
  GeneratedWorkload options{.shape = NamedShape("chat").value(), .requests = 5'000};
  for (const uint32_t context : {2u, 64u, 2048u, 8192u}) {
    options.context_tokens = context;
    for (const WorkloadRequest& request : Generate(options)) {
      ASSERT_GE(request.prompt_tokens, 1u);
      ASSERT_GE(request.output_tokens, 1u);
      ASSERT_LE(request.prompt_tokens + request.output_tokens, context);
    }
  }
}

TEST(Generate, TheSameSeedGivesTheSameAndRatesShareLengths) {
  GeneratedWorkload options{.shape = NamedShape("chat").value(), .requests = 100, .seed = 9};
  const Workload one = Generate(options);
  EXPECT_EQ(WorkloadCsv(one), WorkloadCsv(Generate(options)));
  options.rate_rps = 7;
  options.gap_cv = 2;
  EXPECT_EQ(Generate(options)[50].prompt_tokens, one[50].prompt_tokens);
  options.seed = 10;
  EXPECT_NE(WorkloadCsv(one), WorkloadCsv(Generate(options)));
}

TEST(Random, IsXoshiroSeededBySplitmix) {
  // By the authors' own C code, seed 0.
  Random random(0);
  EXPECT_EQ(random(), 0x99EC5F36CB75F2B4u);
  EXPECT_EQ(random(), 0xBF6E1F784956452Au);
}

}  // namespace
}  // namespace tandem::planner
