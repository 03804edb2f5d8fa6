#include "scheduler/planner/compat/simulator.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <queue>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace tandem::planner::compat {
namespace {

// The peer's constants.
constexpr double kFirstStageMs = 2, kFirstStageMsPerToken = 1e-4, kPrefillStageMsPerStage = 1;
// Beyond these the sums of squares no longer fit, and nothing real is so large.
constexpr int64_t kMaxTokens = 10'000'000, kMaxStages = 100'000;

using Index = uint32_t;

/// One pipeline stage: a server with a queue for each phase.
struct Stage {
  bool first = false, last = false;
  /// Of the same instance; the first one's index for the last.
  Index next = 0;
  std::deque<Index> prefill_queue, decode_queue;
  /// Behind a first prefill stage batches stay as they are: their sizes, in order.
  std::deque<size_t> prefill_batches;

  enum class State { kIdle, kWoken, kPrefilling, kDecoding } state = State::kIdle;
  std::vector<Index> batch;

  size_t PrefillLoad() const {
    return prefill_queue.size() + (state == State::kPrefilling ? batch.size() : 0);
  }
};

struct Completion {
  double at_ms;
  /// In the order in which the batches began.
  uint64_t number;
  Index stage;
  bool operator>(const Completion& other) const {
    return at_ms != other.at_ms ? at_ms > other.at_ms : number > other.number;
  }
};

class Simulation {
 public:
  Simulation(const Placement& placement, std::span<const Request> requests)
      : placement_(placement), requests_(requests), rounds_(requests.size(), 0) {
    if (HasPrefill()) {
      prefill_heads_ = AddInstances(placement.prefill_instances, placement.prefill_stages);
    }
    if (placement.mode == Mode::kDisaggregated || placement.mode == Mode::kDecodeOnly) {
      decode_heads_ = AddInstances(placement.decode_instances, placement.decode_stages);
    }
    prefill_end_ms_.resize(requests.size());
    result_.latencies = {.ttft_ms = std::vector<double>(requests.size()),
                         .tpot_ms = std::vector<double>(requests.size()),
                         .finish_ms = std::vector<double>(requests.size())};
  }

  absl::StatusOr<Simulated> Run() {
    size_t arrived = 0;
    while (arrived < requests_.size() || !completions_.empty()) {
      const bool arrival =
          completions_.empty() ||
          (arrived < requests_.size() && requests_[arrived].arrival_ms <= completions_.top().at_ms);
      now_ms_ = arrival ? requests_[arrived].arrival_ms : completions_.top().at_ms;
      for (; arrived < requests_.size() && requests_[arrived].arrival_ms == now_ms_; ++arrived) {
        Arrive(static_cast<Index>(arrived));
      }
      while (!completions_.empty() && completions_.top().at_ms == now_ms_) {
        const Index stage = completions_.top().stage;
        completions_.pop();
        RETURN_IF_ERROR(Complete(stage));
      }
      for (const Index stage : woken_) RETURN_IF_ERROR(Begin(stages_[stage]));
      woken_.clear();
    }
    return std::move(result_);
  }

 private:
  bool HasPrefill() const { return placement_.mode != Mode::kDecodeOnly; }

  std::vector<Index> AddInstances(int32_t instances, int32_t stages) {
    std::vector<Index> heads;
    for (int32_t i = 0; i < instances; ++i) {
      const auto head = static_cast<Index>(stages_.size());
      heads.push_back(head);
      for (int32_t rank = 0; rank < stages; ++rank) {
        const bool last = rank + 1 == stages;
        stages_.push_back({.first = rank == 0,
                           .last = last,
                           .next = last ? head : static_cast<Index>(stages_.size() + 1)});
      }
    }
    return heads;
  }

  template <typename Load>
  static Index LeastLoaded(const std::vector<Index>& heads, Load load) {
    Index best = heads.front();
    size_t least = load(best);
    for (const Index head : heads) {
      if (const size_t here = load(head); here < least) {
        best = head;
        least = here;
      }
    }
    return best;
  }

  void Arrive(Index request) {
    if (!HasPrefill()) {
      prefill_end_ms_[request] = now_ms_;
      DispatchToDecode(request);
      return;
    }
    const Index head =
        LeastLoaded(prefill_heads_, [&](Index h) { return stages_[h].PrefillLoad(); });
    stages_[head].prefill_queue.push_back(request);
    Wake(head);
  }

  void DispatchToDecode(Index request) {
    const Index head =
        LeastLoaded(decode_heads_, [&](Index h) { return stages_[h].decode_queue.size(); });
    stages_[head].decode_queue.push_back(request);
    Wake(head);
  }

  void Wake(Index index) {
    if (stages_[index].state != Stage::State::kIdle) return;
    stages_[index].state = Stage::State::kWoken;
    woken_.push_back(index);
  }

  /// The stage's batch is done: it goes on, and the stage forms its next one.
  absl::Status Complete(Index index) {
    Stage& stage = stages_[index];
    done_.swap(stage.batch);
    stage.batch.clear();
    const bool prefilled =
        std::exchange(stage.state, Stage::State::kWoken) == Stage::State::kPrefilling;
    if (!stage.last) {
      PassOn(prefilled, stage.next);
    } else if (prefilled) {
      for (const Index request : done_) EndPrefill(request, stage.next);
    } else {
      EndRound(stage.next);
    }
    return Begin(stage);
  }

  void PassOn(bool prefilled, Index to) {
    Stage& next = stages_[to];
    std::deque<Index>& queue = prefilled ? next.prefill_queue : next.decode_queue;
    queue.insert(queue.end(), done_.begin(), done_.end());
    if (prefilled) next.prefill_batches.push_back(done_.size());
    Wake(to);
  }

  void EndPrefill(Index request, Index own_head) {
    prefill_end_ms_[request] = now_ms_;
    result_.latencies.ttft_ms[request] = now_ms_ - requests_[request].arrival_ms;
    if (placement_.mode == Mode::kPrefillOnly) {
      result_.latencies.finish_ms[request] = now_ms_;
    } else if (placement_.mode == Mode::kColocated) {
      stages_[own_head].decode_queue.push_back(request);
      Wake(own_head);
    } else {
      DispatchToDecode(request);
    }
  }

  void EndRound(Index head) {
    std::deque<Index>& queue = stages_[head].decode_queue;
    const size_t before = queue.size();
    for (const Index request : done_) {
      const int64_t wanted = requests_[request].output_tokens;
      if (++rounds_[request] < wanted) {
        queue.push_back(request);
        continue;
      }
      result_.latencies.finish_ms[request] = now_ms_;
      result_.latencies.tpot_ms[request] =
          (now_ms_ - prefill_end_ms_[request]) / static_cast<double>(wanted);
    }
    if (queue.size() > before) Wake(head);
  }

  /// Forms a batch if there is anything to do.
  absl::Status Begin(Stage& stage) {
    double ms = 0;
    if (!stage.prefill_queue.empty()) {
      stage.state = Stage::State::kPrefilling;
      ms = FormPrefillBatch(stage);
    } else if (!stage.decode_queue.empty()) {
      stage.state = Stage::State::kDecoding;
      ms = FormDecodeBatch(stage);
    } else {
      stage.state = Stage::State::kIdle;
      return absl::OkStatus();
    }
    if (!(ms >= 0) || !std::isfinite(ms)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the coefficients give ", ms, " ms for a batch of ", stage.batch.size(),
                       stage.state == Stage::State::kPrefilling ? " prompts" : " sequences"));
    }
    completions_.push({.at_ms = now_ms_ + ms,
                       .number = next_number_++,
                       .stage = static_cast<Index>(&stage - stages_.data())});
    return absl::OkStatus();
  }

  void Take(std::deque<Index>& queue, Stage& stage) {
    stage.batch.push_back(queue.front());
    queue.pop_front();
  }

  /// Returns how long it takes, in ms.
  double FormPrefillBatch(Stage& stage) {
    int64_t tokens = 0, squares = 0;
    const auto take = [&] {
      const int64_t length = requests_[stage.prefill_queue.front()].prompt_tokens;
      tokens += length;
      squares += length * length;
      Take(stage.prefill_queue, stage);
    };
    if (stage.first) {
      const int64_t limit = placement_.limits.prefill_tokens;
      while (!stage.prefill_queue.empty() &&
             tokens + requests_[stage.prefill_queue.front()].prompt_tokens <= limit) {
        take();
      }
      Counters& counters = result_.counters;
      ++counters.prefill_batches;
      counters.max_prefill_batch_requests =
          std::max(counters.max_prefill_batch_requests, static_cast<int64_t>(stage.batch.size()));
      counters.max_prefill_batch_tokens = std::max(counters.max_prefill_batch_tokens, tokens);
    } else {
      for (size_t n = stage.prefill_batches.front(); n > 0; --n) take();
      stage.prefill_batches.pop_front();
    }
    const Abc& abc = placement_.costs.prefill;
    const double stages = placement_.prefill_stages;
    const double whole =
        abc.a + abc.b * static_cast<double>(tokens) + abc.c * static_cast<double>(squares);
    // Multiplied by the inverse, as the peer does: the last bit may decide which event is first.
    const double ms = whole * (1 / stages) + kPrefillStageMsPerStage * stages;
    return stage.first ? ms + FirstStageMs(tokens) : ms;
  }

  /// Returns how long it takes, in ms.
  double FormDecodeBatch(Stage& stage) {
    const BatchLimits& limits = placement_.limits;
    int64_t context = 0, size = 0;
    while (!stage.decode_queue.empty() && size < limits.decode_requests) {
      const Index request = stage.decode_queue.front();
      const int64_t own = requests_[request].prompt_tokens + rounds_[request];
      if (context + size + own + 1 > limits.decode_context_tokens) break;
      context += own;
      ++size;
      Take(stage.decode_queue, stage);
    }
    if (stage.first) {
      ++result_.counters.decode_batches;
      result_.counters.max_decode_batch_requests =
          std::max(result_.counters.max_decode_batch_requests, size);
    }
    const StageCosts& costs = placement_.costs;
    const Abc& abc = size < costs.decode_large_min_batch ? costs.decode_small : costs.decode_large;
    const double stages =
        placement_.mode == Mode::kColocated ? placement_.prefill_stages : placement_.decode_stages;
    const double whole =
        abc.a + abc.b * static_cast<double>(context + size) + abc.c * static_cast<double>(size);
    const double ms = whole * (1 / stages);
    return stage.first ? ms + FirstStageMs(context) : ms;
  }

  static double FirstStageMs(int64_t tokens) {
    return kFirstStageMs + static_cast<double>(tokens) * kFirstStageMsPerToken;
  }

  const Placement& placement_;
  const std::span<const Request> requests_;
  std::vector<Stage> stages_;
  std::vector<Index> prefill_heads_, decode_heads_;
  /// Decode rounds done.
  std::vector<int64_t> rounds_;
  std::vector<double> prefill_end_ms_;
  std::priority_queue<Completion, std::vector<Completion>, std::greater<>> completions_;
  /// Idle stages that got work at this instant, in that order.
  std::vector<Index> woken_;
  /// The batch that has just ended.
  std::vector<Index> done_;
  double now_ms_ = 0;
  uint64_t next_number_ = 0;
  Simulated result_;
};

absl::Status CheckRange(const std::string& what, int64_t value, int64_t max) {
  if (value >= 1 && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " is ", value, "; allowed are 1 to ", max));
}

absl::Status CheckInstances(std::string_view phase, int64_t instances, int64_t stages) {
  const std::string name(phase);
  RETURN_IF_ERROR(CheckRange("number of " + name + " instances", instances, kMaxStages));
  RETURN_IF_ERROR(CheckRange("number of " + name + " stages", stages, kMaxStages));
  return CheckRange("number of " + name + " stages in all", instances * stages, kMaxStages);
}

absl::Status CheckPlacement(const Placement& placement) {
  if (placement.mode != Mode::kDecodeOnly) {
    RETURN_IF_ERROR(
        CheckInstances("prefill", placement.prefill_instances, placement.prefill_stages));
  }
  if (placement.mode == Mode::kDisaggregated || placement.mode == Mode::kDecodeOnly) {
    RETURN_IF_ERROR(CheckInstances("decode", placement.decode_instances, placement.decode_stages));
  }
  return absl::OkStatus();
}

absl::Status CheckRequest(const Placement& placement, const Request& request) {
  RETURN_IF_ERROR(CheckRange("prompt", request.prompt_tokens, kMaxTokens));
  RETURN_IF_ERROR(CheckRange("output", request.output_tokens, kMaxTokens));
  const BatchLimits& limits = placement.limits;
  if (placement.mode != Mode::kDecodeOnly && request.prompt_tokens > limits.prefill_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt of ", request.prompt_tokens,
                                                   " tokens can never run: a prefill batch holds ",
                                                   limits.prefill_tokens));
  }
  if (placement.mode == Mode::kPrefillOnly) return absl::OkStatus();
  if (limits.decode_requests < 1 ||
      request.prompt_tokens + request.output_tokens > limits.decode_context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "with a prompt of ", request.prompt_tokens, " and an output of ", request.output_tokens,
        " tokens it can never end: a decode batch holds ", limits.decode_requests, " requests and ",
        limits.decode_context_tokens, " tokens of context"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Simulated> Simulate(const Placement& placement, std::span<const Request> requests) {
  RETURN_IF_ERROR(CheckPlacement(placement));
  double before_ms = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    absl::Status status = CheckRequest(placement, requests[i]);
    const double arrival_ms = requests[i].arrival_ms;
    if (status.ok() && !(arrival_ms >= before_ms && std::isfinite(arrival_ms))) {
      status = absl::InvalidArgumentError(
          absl::StrCat("it arrives at ", arrival_ms, " ms, the one before at ", before_ms));
    }
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("request ", i, ": ", status.message()));
    }
    before_ms = arrival_ms;
  }
  return Simulation(placement, requests).Run();
}

}  // namespace tandem::planner::compat
