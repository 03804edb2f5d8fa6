// Drives the fuzz target with seeds and with mutations of them that are the same in every run.
#include <gtest/gtest.h>

#include "scheduler/planner/placement_goodput.h"
#include "tests/support/text_mutations.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace tandem::planner {
namespace {

void Fuzz(const std::string& text) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
}

TEST(WorkloadFuzz, SeedsAndMutations) {
  const std::vector<std::string> seeds = {
      "arrival_s,prompt_tokens,output_tokens\n0,500,20\n1,400,30\n2,300,25\n",
      "cached_tokens,output_tokens,prompt_tokens,arrival_s\r\n5,2,10,0\r\n0,1,1,1e-3\r\n",
      "\xef\xbb\xbf arrival_s , prompt_tokens,output_tokens,other\n\n0,1,1,x\n",
      "",
      "arrival_s,prompt_tokens,output_tokens\n",
      "arrival_s,prompt_tokens,output_tokens\n0,1,1\n5e-324,1,1\n"};
  const std::vector<std::string> words = {"nan",    "inf", "-1", "0",  "1e15",     "1e16",
                                          "1e-320", ",",   "\n", "\r", "10000000", "4294967296",
                                          "0x10",   ".5",  "e",  " "};
  for (const std::string& seed : seeds) Fuzz(seed);
  ForEachMutation(seeds, words, 20'000, Fuzz);
  Fuzz(std::string(1 << 20, ','));
  Fuzz("arrival_s,prompt_tokens,output_tokens\n" + std::string(1 << 20, '9'));
  Fuzz("arrival_s,prompt_tokens,output_tokens\n0," + std::string(1 << 20, 'x') + ",1\n");
}

TEST(WorkloadFile, APaceThatIsNoneIsAFault) {
  PlanTask task;
  task.links = {{}};
  task.workload = {{.arrival_s = 0}, {.arrival_s = 5e-324}};
  EXPECT_EQ(CheckTask(task).message(), "the workload has more than 1e9 requests a second");
}

}  // namespace
}  // namespace tandem::planner
