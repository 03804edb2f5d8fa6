// All that can happen to three requests of two tenants on two prefill and two decode workers, which
// come, go, move and are lost in every order: no request is lost or placed twice, and the books of
// admission and dispatch agree with what happened after every event.
#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "scheduler/core/admission.h"
#include "scheduler/core/dispatcher.h"

namespace tandem::scheduler {
namespace {

constexpr int kRequests = 3, kWorkers = 4, kDepth = 9;
constexpr const char* kTenants[] = {"a", "b", "a"};

struct Event {
  enum Kind { kArrive, kNext, kPrefillDone, kFinish, kCancel, kMove, kLose, kReturn, kReport } kind;
  int which = 0;
};

/// The core, driven as a router drives it, and what it should think.
class World {
 public:
  World() {
    for (int w = 0; w < kWorkers; ++w) Return(w);
  }

  std::vector<Event> Possible() const {
    std::vector<Event> events;
    for (int r = 0; r < kRequests; ++r) {
      const State state = requests_[r].state;
      if (state == kNew) events.push_back({Event::kArrive, r});
      if (state == kPrefilling) events.push_back({Event::kPrefillDone, r});
      if (state == kDecoding) events.push_back({Event::kFinish, r});
      if (state == kDecoding) events.push_back({Event::kMove, r});
      if (state == kQueued || state == kPrefilling || state == kDecoding) {
        events.push_back({Event::kCancel, r});
      }
    }
    if (admission_.Peek()) events.push_back({Event::kNext});
    for (int w = 0; w < kWorkers; ++w) {
      if (index_[w] == kNoWorker) {
        events.push_back({Event::kReturn, w});
      } else {
        if (losses_ < 2) events.push_back({Event::kLose, w});
        if (Parts(w) > 0) events.push_back({Event::kReport, w});
      }
    }
    return events;
  }

  void Do(const Event& event) {
    now_ += 1;
    switch (event.kind) {
      case Event::kArrive:
        return Arrive(event.which);
      case Event::kNext:
        return Next();
      case Event::kPrefillDone:
        dispatcher_.DecodeBegins(requests_[event.which].assignment, now_);
        dispatcher_.ReleasePrefill(requests_[event.which].assignment);
        requests_[event.which].state = kDecoding;
        requests_[event.which].prefill = -1;
        return;
      case Event::kFinish:
      case Event::kCancel:
        return End(event.which);
      case Event::kMove:
        return Move(event.which);
      case Event::kLose:
        return Lose(event.which);
      case Event::kReturn:
        return Return(event.which);
      case Event::kReport:
        return Report(event.which);
    }
  }

  void Check() const {
    uint32_t queued = 0, running = 0;
    for (const Request& request : requests_) {
      queued += request.state == kQueued;
      running += request.state == kPrefilling || request.state == kDecoding;
      if (request.state == kPrefilling) {
        ASSERT_TRUE(request.prefill >= 0 && index_[request.prefill] != kNoWorker);
      }
      if (request.state == kPrefilling || request.state == kDecoding) {
        ASSERT_TRUE(request.decode >= 0 && index_[request.decode] != kNoWorker);
      }
    }
    ASSERT_EQ(admission_.queued(), queued);
    ASSERT_EQ(admission_.running(), running);
    ASSERT_EQ(dispatcher_.assignments(), running);
    for (int w = 0; w < kWorkers; ++w) {
      if (index_[w] == kNoWorker) continue;
      ASSERT_EQ(dispatcher_.assigned(index_[w]), Parts(w)) << w;
    }
  }

  /// Everything ends; then nothing may be left anywhere.
  void Drain() {
    for (int r = 0; r < kRequests; ++r) {
      if (requests_[r].state != kNew && requests_[r].state != kEnded) End(r);
    }
    for (int w = 0; w < kWorkers; ++w) {
      if (index_[w] == kNoWorker) Return(w);
      Report(w);
    }
    Check();
    const auto decision = dispatcher_.Choose(kWork, now_, random_);
    ASSERT_TRUE(decision.ok());
    for (const Candidate& candidate : decision->candidates) {
      ASSERT_EQ(candidate.queue_s, 0);
      ASSERT_DOUBLE_EQ(candidate.step_s, DecodeCost().StepSeconds(1, kWork.prompt_tokens));
    }
  }

  std::string Key() const {
    std::string key;
    for (const Request& r : requests_) {
      key += {static_cast<char>('0' + r.state), static_cast<char>('0' + r.prefill + 1),
              static_cast<char>('0' + r.decode + 1), static_cast<char>('0' + r.unreported)};
    }
    for (const WorkerIndex index : index_) key += index == kNoWorker ? '-' : '+';
    return key + static_cast<char>('0' + losses_) +
           (admission_.Peek() ? std::to_string(WhoHas(*admission_.Peek())) : "");
  }

 private:
  enum State { kNew, kQueued, kPrefilling, kDecoding, kEnded };
  struct Request {
    State state = kNew;
    Ticket ticket = 0;
    AssignmentId assignment = 0;
    int prefill = -1, decode = -1;
    bool unreported = false;
  };
  static inline const Work kWork = {.prompt_tokens = 100, .expected_output_tokens = 20};

  int WhoHas(Ticket ticket) const {
    for (int r = 0; r < kRequests; ++r) {
      if (requests_[r].ticket == ticket) return r;
    }
    return -1;
  }
  int WorkerAt(WorkerIndex index) const {
    for (int w = 0; w < kWorkers; ++w) {
      if (index_[w] == index) return w;
    }
    return -1;
  }
  uint32_t Parts(int w) const {
    uint32_t n = 0;
    for (const Request& r : requests_) {
      n += r.state == kPrefilling && r.prefill == w;
      n += (r.state == kPrefilling || r.state == kDecoding) && r.decode == w;
    }
    return n;
  }

  void Arrive(int r) {
    const Admitted admitted = admission_.Enqueue({.tenant = kTenants[r], .work_tokens = 100}, now_);
    if (admitted.displaced != 0) requests_[WhoHas(admitted.displaced)].state = kEnded;
    requests_[r].state = admitted.ticket == 0 ? kEnded : kQueued;
    requests_[r].ticket = admitted.ticket;
  }

  void Next() {
    const int r = WhoHas(*admission_.Next(now_));
    ASSERT_EQ(requests_[r].state, kQueued);
    Place(r, kWork);
  }

  void Place(int r, const Work& work) {
    Request& request = requests_[r];
    const auto decision = dispatcher_.Choose(work, now_, random_);
    if (!decision.ok()) {  // nobody is left: it ends with an error
      request.state = kEnded;
      admission_.Finish(request.ticket);
      return;
    }
    request.assignment = dispatcher_.Assign(work, decision->choice, now_);
    request.state = work.fixed_prefill ? kDecoding : kPrefilling;
    request.prefill = work.fixed_prefill ? -1 : WorkerAt(decision->choice.prefill);
    request.decode = WorkerAt(decision->choice.decode);
    request.unreported = true;
  }

  void Release(int r) {
    dispatcher_.ReleasePrefill(requests_[r].assignment);
    dispatcher_.ReleaseDecode(requests_[r].assignment);
    dispatcher_.ReleaseDecode(requests_[r].assignment);  // no harm
    requests_[r].prefill = requests_[r].decode = -1;
  }

  void End(int r) {
    if (requests_[r].state == kQueued) {
      ASSERT_TRUE(admission_.Cancel(requests_[r].ticket));
    } else {
      Release(r);
      admission_.Finish(requests_[r].ticket);
    }
    requests_[r].state = kEnded;
  }

  void Move(int r) {
    Work work = kWork;
    work.fixed_prefill = index_[requests_[r].decode];
    work.excluded = {*work.fixed_prefill};
    const AssignmentId old = requests_[r].assignment;
    Place(r, work);
    dispatcher_.ReleaseDecode(old);
    if (requests_[r].state == kEnded) requests_[r].prefill = requests_[r].decode = -1;
  }

  void Lose(int w) {
    ++losses_;
    dispatcher_.Remove(index_[w]);
    index_[w] = kNoWorker;
    for (int r = 0; r < kRequests; ++r) {
      if (requests_[r].prefill != w && requests_[r].decode != w) continue;
      Release(r);
      Place(r, kWork);
    }
  }

  void Return(int w) {
    index_[w] = dispatcher_.Add();
    Report(w);
  }

  void Report(int w) {
    dispatcher_.Report(index_[w],
                       {.takes_prefill = w < 2, .takes_decode = w >= 2, .max_sequences = 4}, now_);
    for (Request& r : requests_) {
      if (r.prefill == w || r.decode == w) r.unreported = false;
    }
  }

  double now_ = 0;
  std::mt19937_64 random_{1};
  Admission admission_{{.max_queued = 2}};
  Dispatcher dispatcher_;
  std::array<Request, kRequests> requests_;
  std::array<WorkerIndex, kWorkers> index_{};
  int losses_ = 0;
};

TEST(SchedulingCoreTest, EveryOrderOfEventsKeepsTheBooks) {
  // Breadth first over what can be told apart; each state is reached by replaying its events.
  std::deque<std::vector<Event>> open = {{}};
  std::set<std::string> seen;
  size_t n_states = 0;
  while (!open.empty()) {
    const std::vector<Event> path = std::move(open.front());
    open.pop_front();
    World world;
    for (const Event& event : path) world.Do(event);
    if (!seen.insert(world.Key()).second) continue;
    ++n_states;
    world.Check();
    const std::vector<Event> possible = world.Possible();
    world.Drain();
    if (testing::Test::HasFatalFailure()) {
      for (const Event& event : path) printf("event %d of %d\n", event.kind, event.which);
      return;
    }
    if (path.size() == kDepth) continue;
    for (const Event& event : possible) {
      open.push_back(path);
      open.back().push_back(event);
    }
  }
  RecordProperty("states", static_cast<int>(n_states));
  printf("%zu states\n", n_states);
  EXPECT_GT(n_states, 1000u);
}

}  // namespace
}  // namespace tandem::scheduler
