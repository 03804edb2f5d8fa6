#include "scheduler/core/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

namespace tandem::scheduler {
namespace {

using testing::HasSubstr;

WorkerReport Prefilling(uint64_t tokens_to_compute = 0) {
  WorkerReport report = {.takes_prefill = true, .tokens_to_compute = tokens_to_compute};
  report.latency.prefill = {.base_s = 0.01, .per_token_s = 1e-3, .per_position_s = 0};
  report.latency.saturation_tokens = 100;
  return report;
}

WorkerReport DecodingWith(uint32_t running) {
  WorkerReport report = {.takes_decode = true, .decode_running = running, .max_sequences = 4};
  report.latency.decode = {.base_s = 0.01, .per_sequence_s = 0.01, .per_context_token_s = 0};
  return report;
}

WorkerReport DecodeFirst(uint32_t running) {
  WorkerReport report = DecodingWith(running);
  report.takes_prefill = report.decode_first = true;
  report.latency.prefill = Prefilling().latency.prefill;
  report.latency.saturation_tokens = 100;
  return report;
}

class DispatcherTest : public testing::Test {
 protected:
  WorkerIndex Add(const WorkerReport& report, double now_s = 0) {
    const WorkerIndex worker = dispatcher_.Add();
    dispatcher_.Report(worker, report, now_s);
    return worker;
  }
  Candidate Choose(const Work& work, double now_s = 0) {
    const auto decision = dispatcher_.Choose(work, now_s, random_);
    EXPECT_TRUE(decision.ok()) << decision.status();
    return decision.ok() ? decision->choice : Candidate();
  }
  std::map<WorkerIndex, int> Decodes(const Work& work, int n) {
    std::map<WorkerIndex, int> chosen;
    for (int i = 0; i < n; ++i) ++chosen[Choose(work).decode];
    return chosen;
  }
  static Work Prompt(uint32_t tokens) {
    return {.prompt_tokens = tokens, .expected_output_tokens = 11};
  }

  Dispatcher dispatcher_{{.ttft_objective_s = 1, .tpot_objective_s = 0.1}};
  std::mt19937_64 random_{1};
};

TEST_F(DispatcherTest, NamesWhatIsMissing) {
  EXPECT_THAT(std::string(dispatcher_.Choose(Prompt(1), 0, random_).status().message()),
              HasSubstr("no prefill worker"));
  Add(Prefilling());
  EXPECT_THAT(std::string(dispatcher_.Choose(Prompt(1), 0, random_).status().message()),
              HasSubstr("no decode worker"));
  Work first_token_only = Prompt(1);
  first_token_only.needs_decode = false;
  EXPECT_EQ(Choose(first_token_only).decode, kNoWorker);
}

TEST_F(DispatcherTest, PredictsWhatTheModelSays) {
  const WorkerIndex p = Add(Prefilling(100));
  const WorkerIndex d = Add(DecodingWith(2));
  Work work = Prompt(200);
  work.kv_bytes_per_token = 1000;
  work.waited_s = 0.5;
  dispatcher_.SetLink(p, d, {.bytes_per_s = 1e6, .rtt_s = 0.01});
  const Candidate choice = Choose(work);
  EXPECT_NEAR(choice.queue_s, 0.11, 1e-9);          // one full step
  EXPECT_NEAR(choice.compute_s, 0.2 + 0.02, 1e-9);  // two steps
  EXPECT_NEAR(choice.ttft_s, 0.5 + 0.11 + 0.22, 1e-9);
  EXPECT_NEAR(choice.step_s, 0.04, 1e-9);           // three sequences
  EXPECT_NEAR(choice.handoff_s, 0.01 + 0.2, 1e-9);  // 200 kB at 1 MB/s: all within a last chunk
  EXPECT_NEAR(choice.tpot_s, 0.04 + 0.21 / 10, 1e-9);
  EXPECT_NEAR(choice.steps_ahead, 1, 1e-9);
}

TEST_F(DispatcherTest, AnEmptyPromptIsPredictedAsOneStep) {
  Add(Prefilling());
  Add(DecodingWith(0));
  EXPECT_NEAR(Choose(Prompt(0)).compute_s, 0.01, 1e-9);
}
TEST_F(DispatcherTest, WorkIsDoneBetweenReports) {
  Add(Prefilling(1000), 10);
  Add(DecodingWith(0), 10);
  EXPECT_NEAR(Choose(Prompt(1), 10).queue_s, 1.1, 1e-9);
  EXPECT_NEAR(Choose(Prompt(1), 10.6).queue_s, 0.5, 1e-9);
  EXPECT_NEAR(Choose(Prompt(1), 99).queue_s, 0, 1e-9);
}

TEST_F(DispatcherTest, WhatIsAssignedCountsUntilAReportHasIt) {
  const WorkerIndex p = Add(Prefilling());
  const WorkerIndex d = Add(DecodingWith(0));
  const Work work = Prompt(100);
  const AssignmentId id = dispatcher_.Assign(work, Choose(work), 1);
  EXPECT_NEAR(Choose(work).queue_s, 0.11, 1e-9);
  EXPECT_NEAR(Choose(work).step_s, 0.03, 1e-9);
  dispatcher_.Report(p, Prefilling(), 1.01);  // it was on its way before
  EXPECT_NEAR(Choose(work).queue_s, 0.11, 1e-9);
  dispatcher_.Report(p, Prefilling(50), 2);
  EXPECT_NEAR(Choose(work, 2).queue_s, 0.055, 1e-9);
  // The decode worker cannot report what it has not been asked for.
  dispatcher_.Report(d, DecodingWith(0), 2);
  EXPECT_NEAR(Choose(work).step_s, 0.03, 1e-9);
  dispatcher_.DecodeBegins(id, 2);
  dispatcher_.Report(d, DecodingWith(1), 3);
  EXPECT_NEAR(Choose(work).step_s, 0.03, 1e-9);
  EXPECT_EQ(dispatcher_.assigned(d), 1u);
  dispatcher_.ReleasePrefill(id);
  EXPECT_EQ(dispatcher_.assignments(), 1u);
  dispatcher_.ReleaseDecode(id);
  dispatcher_.ReleaseDecode(id);
  EXPECT_NEAR(Choose(work).step_s, 0.02, 1e-9) << "the report is older than the sequence's end";
  EXPECT_EQ(dispatcher_.assigned(p) + dispatcher_.assigned(d), 0u);
  EXPECT_EQ(dispatcher_.assignments(), 0u);
}

TEST_F(DispatcherTest, WhatAReportNamesIsNotCountedTwice) {
  const WorkerIndex p = Add(Prefilling());
  const WorkerIndex d = Add(DecodingWith(0));
  const Work work = Prompt(100);
  const AssignmentId first = dispatcher_.Assign(work, Choose(work), 1);
  const AssignmentId second = dispatcher_.Assign(work, Choose(work), 1.001);
  WorkerReport report = Prefilling(100);
  report.prompts = {{.id = ~first, .tokens_to_compute = 0},
                    {.id = first, .tokens_to_compute = 100}};
  dispatcher_.Report(p, report, 1.01);
  EXPECT_NEAR(Choose(work, 1.01).queue_s, 0.22, 1e-9) << "the second is still on its way";
  dispatcher_.DecodeBegins(first, 1.01);
  WorkerReport decoding = DecodingWith(1);
  decoding.sequences = {first, ~second};
  dispatcher_.Report(d, decoding, 1.02);
  EXPECT_NEAR(Choose(work, 1.02).step_s, 0.04, 1e-9);
}

TEST_F(DispatcherTest, AComputedPromptIsAheadOfNobody) {
  const WorkerIndex p = Add(Prefilling());
  Add(DecodingWith(0));
  const Work work = Prompt(100);
  const AssignmentId first = dispatcher_.Assign(work, Choose(work), 0);
  const AssignmentId second = dispatcher_.Assign(work, Choose(work), 0);
  const AssignmentId third = dispatcher_.Assign(work, Choose(work), 0.99);
  WorkerReport report = Prefilling(200);
  report.prompts = {{.id = first, .tokens_to_compute = 100},
                    {.id = second, .tokens_to_compute = 100}};
  dispatcher_.Report(p, report, 1);
  EXPECT_NEAR(Choose(work, 1.01).queue_s, 0.21 + 0.11, 1e-9);
  // Sooner than predicted: what is left are the others'.
  dispatcher_.PromptComputed(first, 1.01);
  EXPECT_NEAR(Choose(work, 1.01).queue_s, 0.11 + 0.11, 1e-9);
  EXPECT_NEAR(Choose(work, 1.06).queue_s, 0.06 + 0.11, 1e-9) << "and they are being computed";
  // One of which no report has told.
  dispatcher_.PromptComputed(third, 1.06);
  dispatcher_.PromptComputed(third, 1.06);
  EXPECT_NEAR(Choose(work, 1.06).queue_s, 0.06, 1e-9);
  dispatcher_.PromptComputed(second, 1.06);
  EXPECT_NEAR(Choose(work, 1.06).queue_s, 0, 1e-9);
}

TEST_F(DispatcherTest, ANewWorkerDoesNotInheritWhatAGoneOneHad) {
  const WorkerIndex p = Add(Prefilling());
  Add(DecodingWith(0));
  const Work work = Prompt(100);
  const AssignmentId id = dispatcher_.Assign(work, Choose(work), 0);
  dispatcher_.Remove(p);
  ASSERT_EQ(Add(Prefilling()), p);
  EXPECT_EQ(dispatcher_.assigned(p), 0u);
  EXPECT_NEAR(Choose(work).queue_s, 0, 1e-9);
  dispatcher_.ReleasePrefill(id);
  EXPECT_EQ(dispatcher_.assigned(p), 0u);
  dispatcher_.ReleaseDecode(id);
  EXPECT_EQ(dispatcher_.assignments(), 0u);
}

TEST_F(DispatcherTest, CachedKvIsWorthTheTimeThatItSpares) {
  const WorkerIndex holder = Add(Prefilling(300));
  const WorkerIndex idle = Add(Prefilling());
  Add(DecodingWith(0));
  Work work = Prompt(500);
  work.kv_bytes_per_token = 1000;
  work.cached = {{holder, 400}};
  dispatcher_.SetLink(holder, idle, {.bytes_per_s = 1e4, .rtt_s = 0});  // 40 s to load it
  EXPECT_EQ(Choose(work).prefill, holder);  // 0.33 queue + 0.11 against 0.55
  EXPECT_EQ(Choose(work).cached_tokens, 400u);
  dispatcher_.Report(holder, Prefilling(1000), 0);
  EXPECT_EQ(Choose(work).prefill, idle);
  EXPECT_EQ(Choose(work).cached_tokens, 0u);
  // Over a fast link it is loaded from there.
  dispatcher_.SetLink(holder, idle, {.bytes_per_s = 1e7, .rtt_s = 0.001});
  const Candidate choice = Choose(work);
  EXPECT_EQ(choice.prefill, idle);
  EXPECT_EQ(choice.cached_tokens, 400u);
  EXPECT_NEAR(choice.load_s, 0.041, 1e-9);
  EXPECT_NEAR(choice.compute_s, 0.11, 1e-9);
}

TEST_F(DispatcherTest, AtLeastOneTokenIsComputed) {
  const WorkerIndex p = Add(Prefilling());
  Add(DecodingWith(0));
  Work work = Prompt(100);
  work.cached = {{p, 100}};
  EXPECT_EQ(Choose(work).cached_tokens, 99u);
}

TEST_F(DispatcherTest, TheFasterLinkAndTheFreePlaceAreBetter) {
  const WorkerIndex p = Add(Prefilling());
  const WorkerIndex far = Add(DecodingWith(0)), near = Add(DecodingWith(0));
  Work work = Prompt(100);
  work.kv_bytes_per_token = 1000;
  dispatcher_.SetLink(p, far, {.bytes_per_s = 1e6, .rtt_s = 0.001});
  dispatcher_.SetLink(p, near, {.bytes_per_s = 1e7, .rtt_s = 0.001});
  EXPECT_EQ(Decodes(work, 20)[near], 20);
  dispatcher_.Report(near, DecodingWith(4), 0);  // full: a whole life to wait
  EXPECT_EQ(Decodes(work, 20)[far], 20);
}

TEST_F(DispatcherTest, KvThatIsOnItsWaySharesTheLink) {
  const WorkerIndex p = Add(Prefilling());
  const WorkerIndex quiet = Add(DecodingWith(3));
  WorkerReport waits = DecodingWith(0);
  waits.decode_waiting = 3;
  const WorkerIndex busy = Add(waits);
  for (const WorkerIndex d : {quiet, busy}) {
    dispatcher_.SetLink(p, d, {.bytes_per_s = 1e6, .rtt_s = 0});
  }
  Work work = Prompt(100);
  work.kv_bytes_per_token = 1000;
  EXPECT_EQ(Decodes(work, 20)[quiet], 20);
  work.excluded = {quiet};
  const Candidate shared = Choose(work);
  EXPECT_EQ(shared.decode, busy);
  EXPECT_NEAR(shared.handoff_s, 4 * 0.1, 1e-9) << "100 kB at a quarter of 1 MB/s";
}

TEST_F(DispatcherTest, APlaceIsNeededOnlyWhenThePromptIsComputed) {
  Add(Prefilling());
  Add(DecodingWith(4));  // full: in 50 ms times 11 tokens over 4 places one comes free
  const Candidate late = Choose(Prompt(500));
  EXPECT_GT(late.ttft_s, 0.5);
  EXPECT_EQ(late.decode_wait_s, 0);
  const Candidate soon = Choose(Prompt(50));
  EXPECT_NEAR(soon.decode_wait_s + soon.ttft_s, 0.25 * 11 * soon.step_s, 1e-9);
}

TEST_F(DispatcherTest, KvRoomCounts) {
  Add(Prefilling());
  WorkerReport report = DecodingWith(1);
  report.kv_capacity_tokens = 1000;
  report.kv_expected_tokens = 1900;
  const WorkerIndex tight = Add(report);
  report.kv_expected_tokens = 100;
  const WorkerIndex roomy = Add(report);
  EXPECT_EQ(Decodes(Prompt(100), 20)[roomy], 20);
  dispatcher_.Suspend(roomy);
  EXPECT_EQ(Decodes(Prompt(100), 5)[tight], 5);  // a soft score: better than nobody
}

TEST_F(DispatcherTest, ADecodeWorkerPrefillsForItselfWhereNobodySuffers) {
  const WorkerIndex p = Add(Prefilling(500));
  const WorkerIndex d = Add(DecodeFirst(0));
  EXPECT_EQ(Choose(Prompt(50)).prefill, d);
  // Sequences that run are not disturbed as long as the prompt has its first token in time.
  dispatcher_.Report(d, DecodeFirst(3), 0);
  EXPECT_EQ(Choose(Prompt(50)).prefill, p);
  dispatcher_.Report(p, Prefilling(1500), 0);
  // A step takes 50 ms with the new one, a least piece 42 ms: there is time.
  EXPECT_EQ(Choose(Prompt(50)).prefill, d);
  // With nine there is none.
  WorkerReport busy = DecodeFirst(9);
  busy.max_sequences = 16;
  dispatcher_.Report(d, busy, 0);
  EXPECT_EQ(Choose(Prompt(50)).prefill, p);
  // Without a prefill worker it does what it can.
  dispatcher_.Suspend(p);
  EXPECT_EQ(Choose(Prompt(50)).prefill, d);
}

TEST_F(DispatcherTest, ADecodeWorkerDoesNotPrefillForAnother) {
  const WorkerIndex p = Add(Prefilling(2000));
  const WorkerIndex full = Add(DecodingWith(0));
  const WorkerIndex d = Add(DecodeFirst(0));
  for (int i = 0; i < 50; ++i) {
    const auto decision = dispatcher_.Choose(Prompt(50), 0, random_);
    for (const Candidate& candidate : decision->candidates) {
      EXPECT_TRUE(candidate.prefill == p || (candidate.prefill == d && candidate.decode == d));
    }
  }
  EXPECT_NE(full, d);
}

TEST_F(DispatcherTest, AmongManyThatDoBothEachStillKeepsWhatItPrefilled) {
  WorkerReport both = DecodingWith(0);
  both.takes_prefill = true;
  both.latency.prefill = Prefilling().latency.prefill;
  for (int i = 0; i < 100; ++i) Add(both);
  for (int i = 0; i < 200; ++i) {
    const Candidate chosen = Choose(Prompt(50));
    EXPECT_EQ(chosen.prefill, chosen.decode);
  }
}

TEST_F(DispatcherTest, AWorkerThatDoesBothKeepsWhatItPrefilled) {
  auto mixed = [](uint32_t running, uint64_t to_compute) {
    WorkerReport report = DecodingWith(running);
    report.takes_prefill = true;
    report.tokens_to_compute = to_compute;
    report.latency.prefill = Prefilling().latency.prefill;
    report.latency.saturation_tokens = 100;
    return report;
  };
  const WorkerIndex free = Add(mixed(1, 0)), busy = Add(mixed(0, 100));
  EXPECT_EQ(Choose(Prompt(100)).prefill, free);
  EXPECT_EQ(Choose(Prompt(100)).decode, free) << "though the other one decodes nothing";
  dispatcher_.Report(free, mixed(20, 0), 0);
  EXPECT_EQ(Choose(Prompt(100)).decode, busy) << "at the other one there is no place for long";
}

TEST_F(DispatcherTest, AMoveChoosesOnlyTheDecodeSide) {
  const WorkerIndex from = Add(DecodingWith(3));
  const WorkerIndex to = Add(DecodingWith(0));
  Work work = Prompt(300);
  work.fixed_prefill = from;
  work.excluded = {from};
  const Candidate choice = Choose(work);
  EXPECT_EQ(choice.prefill, from);
  EXPECT_EQ(choice.decode, to);
  EXPECT_EQ(choice.ttft_s, 0);
  const AssignmentId id = dispatcher_.Assign(work, choice, 0);
  EXPECT_EQ(dispatcher_.assigned(from), 0u);
  dispatcher_.ReleaseDecode(id);
  EXPECT_EQ(dispatcher_.assignments(), 0u);
}

TEST_F(DispatcherTest, AMoveFromAWorkerThatHasLeftChoosesADecodeWorkerStill) {
  const WorkerIndex d = Add(DecodingWith(0));
  Work work = Prompt(100);
  work.fixed_prefill = kNoWorker;
  const Candidate choice = Choose(work);
  EXPECT_EQ(choice.prefill, kNoWorker);
  EXPECT_EQ(choice.decode, d);
}

TEST_F(DispatcherTest, ExcludedWorkersAndPairsAreTheLastResort) {
  const WorkerIndex p = Add(Prefilling()), q = Add(Prefilling(5000));
  const WorkerIndex d = Add(DecodingWith(0)), e = Add(DecodingWith(4));
  Work work = Prompt(100);
  work.excluded = {p};
  EXPECT_EQ(Choose(work).prefill, q);
  dispatcher_.Suspend(q);
  EXPECT_EQ(Choose(work).prefill, p);
  work.excluded.clear();
  work.excluded_pairs = {{p, d}};
  EXPECT_EQ(Choose(work).decode, e);
  work.excluded_pairs.clear();
  dispatcher_.AvoidPair(d, p, 5);
  EXPECT_EQ(Choose(work, 4).decode, e);
  EXPECT_EQ(Choose(work, 5).decode, d);
}

TEST_F(DispatcherTest, EqualsShareEvenly) {
  std::vector<WorkerIndex> prefills, decodes;
  for (int i = 0; i < 10; ++i) prefills.push_back(Add(Prefilling()));
  for (int i = 0; i < 10; ++i) decodes.push_back(Add(DecodingWith(0)));
  std::map<WorkerIndex, int> chosen;
  for (int i = 0; i < 2000; ++i) {
    const Candidate choice = Choose(Prompt(100));
    ++chosen[choice.prefill];
    ++chosen[choice.decode];
  }
  for (const auto& [worker, n] : chosen) EXPECT_NEAR(n, 200, 60) << worker;
  EXPECT_EQ(chosen.size(), 20u);
}

TEST_F(DispatcherTest, CandidatesAreSortedAndTheChosenOneIsAmongThem) {
  for (int i = 0; i < 30; ++i) {
    Add(Prefilling(random_() % 3000));
    Add(DecodingWith(random_() % 6));
  }
  for (int i = 0; i < 200; ++i) {
    const auto decision = dispatcher_.Choose(Prompt(1 + random_() % 500), 0, random_);
    ASSERT_TRUE(decision.ok());
    int n_chosen = 0;
    double last = -1;
    for (const Candidate& candidate : decision->candidates) {
      EXPECT_GE(candidate.score, last);
      last = candidate.score;
      n_chosen += candidate.chosen;
      EXPECT_NEAR(candidate.ttft_s, candidate.queue_s + candidate.compute_s + candidate.load_s,
                  1e-9);
    }
    EXPECT_EQ(n_chosen, 1);
  }
}

/// The shortcuts (best prefill sides, pairs passed over) lose nothing that matters.
TEST_F(DispatcherTest, IsAsGoodAsLookingAtEveryPair) {
  std::vector<WorkerIndex> prefills, decodes;
  for (int i = 0; i < 12; ++i) prefills.push_back(Add(Prefilling(random_() % 1000)));
  for (int i = 0; i < 12; ++i) decodes.push_back(Add(DecodingWith(random_() % 4)));
  for (const WorkerIndex p : prefills) {
    for (const WorkerIndex d : decodes) {
      dispatcher_.SetLink(p, d, {.bytes_per_s = 1e7 * (1 + random_() % 10), .rtt_s = 0.001});
    }
  }
  Work work = Prompt(100);
  work.kv_bytes_per_token = 1000;
  const auto decision = dispatcher_.Choose(work, 0, random_);
  ASSERT_TRUE(decision.ok());
  double least = HUGE_VAL;
  for (const WorkerIndex p : prefills) {
    for (const WorkerIndex d : decodes) {
      Work only = work;
      for (const WorkerIndex other : prefills)
        if (other != p) only.excluded.push_back(other);
      for (const WorkerIndex other : decodes)
        if (other != d) only.excluded.push_back(other);
      const auto one = dispatcher_.Choose(only, 0, random_);
      ASSERT_EQ(one->choice.prefill, p);
      ASSERT_EQ(one->choice.decode, d);
      least = std::min(least, one->choice.score);
    }
  }
  EXPECT_NEAR(decision->candidates[0].score, least, 1e-9);
}

}  // namespace
}  // namespace tandem::scheduler
