// `tandem kv profile`: measures a model on a text and writes what the KV codec must know of it.
#include <atomic>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/files.h"
#include "base/status.h"
#include "cli/kv.h"
#include "workers/calibration/profile_builder.h"

namespace tandem::cli {
namespace {

using kvstore::codec::Profile;

struct Settings {
  KvInput input;
  workers::ReplayOptions replay;
  std::string out;
};

Command MakeCommand(Settings& settings) {
  Settings* const s = &settings;
  Command command{
      "kv profile", "",
      "Measures how a model's KV cache can be compressed and what that costs the model, and\n"
      "writes a profile, with which the lossy levels q1 to q4 work best. The text should be like\n"
      "what the model will read, and at least windows x (context + continuation + 1) tokens long.\n"
      "When interrupted, the next call with the same flags goes on (PROFILE.partial).",
      s->input.Options()};
  const auto replay = ReplayFlags(s->replay);
  command.options.insert(command.options.end(), replay.begin(), replay.end());
  command.options.push_back({"out", "FILE",
                             "The profile to write. Default: the model's path with .kvprofile in "
                             "place of .gguf.",
                             ReadText([s](std::string v) { s->out = std::move(v); })});
  return command;
}

/// One line that is drawn anew on a terminal; elsewhere a line for each stage.
class ProgressLine {
 public:
  explicit ProgressLine(const Terminal& terminal) : terminal_(terminal) {}
  ~ProgressLine() {
    if (terminal_.err_is_terminal && !stage_.empty()) terminal_.err << "\r\33[K" << std::flush;
  }
  void Show(const workers::ProfileProgress& progress) {
    const absl::Time now = absl::Now();
    const bool new_stage = progress.stage != stage_;
    if (stage_.empty()) start_ = now;
    stage_ = progress.stage;
    // What an earlier call has done goes by at once and says nothing of the speed.
    if (now - start_ < absl::Milliseconds(100)) resumed_ = progress.done;
    if (!new_stage && (!terminal_.err_is_terminal || now - drawn_ < absl::Milliseconds(100)))
      return;
    drawn_ = now;
    const double share = static_cast<double>(progress.done) / static_cast<double>(progress.total);
    std::string line = absl::StrFormat("%3.0f %% %s", 100 * share, std::string(progress.stage));
    if (progress.done > resumed_) {
      const double rate =
          static_cast<double>(progress.done - resumed_) / absl::ToDoubleSeconds(now - start_);
      const auto left =
          static_cast<int64_t>(static_cast<double>(progress.total - progress.done) / rate);
      absl::StrAppendFormat(&line, ", %d:%02d left", left / 60, left % 60);
    }
    if (terminal_.err_is_terminal) {
      const auto filled = static_cast<size_t>(share * 30);
      terminal_.err << "\r\33[K[" << std::string(filled, '#') << std::string(30 - filled, '.')
                    << "] " << line << std::flush;
    } else {
      terminal_.err << line << std::endl;
    }
  }

 private:
  const Terminal& terminal_;
  std::string stage_;
  absl::Time start_, drawn_;
  uint64_t resumed_ = 0;
};

void Print(const Profile& profile, const std::string& path, size_t bytes, absl::Duration time,
           const Terminal& terminal) {
  terminal.out << absl::StrFormat("%s: %d bytes, %d symbol tables, %d exact sink tokens, %s\n",
                                  path, bytes, profile.tables.size(), profile.sink_tokens,
                                  absl::FormatDuration(absl::Trunc(time, absl::Seconds(1))))
               << "level  bits/element  perplexity change    top-1       KL\n";
  for (const auto level : kvstore::codec::kAllLevels) {
    if (level == kvstore::codec::Level::kLossless || !profile.levels[LossyIndex(level)]) continue;
    const auto& m = profile.levels[LossyIndex(level)]->measured;
    terminal.out << absl::StrFormat("%-5s  %12.3f  %+7.2f %% ± %4.2f %%  %5.1f %%  %.5f\n",
                                    std::string(LevelName(level)), m.bits_per_element,
                                    100 * m.perplexity_change, 100 * m.perplexity_change_se,
                                    100 * m.top1_agreement, m.kl_divergence);
  }
}

absl::Status Make(Settings& settings, const std::atomic<bool>& stop, const Terminal& terminal) {
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(const std::string text, LoadText(settings.input));
  ASSIGN_OR_RETURN(const auto model, LoadModel(settings.input));
  if (settings.out.empty()) settings.out = DefaultProfilePath(settings.input.model_path);
  Profile profile;
  {
    ProgressLine line(terminal);
    workers::ProfileOptions options{.replay = settings.replay,
                                    .partial_path = settings.out + ".partial"};
    options.progress = [&](const workers::ProfileProgress& progress) {
      line.Show(progress);
      return !stop;
    };
    ASSIGN_OR_RETURN(profile, workers::BuildProfile(model, text, options, settings.input.engine));
  }
  const std::string bytes = SerializeProfile(profile);
  RETURN_IF_ERROR(WriteWholeFile(settings.out, bytes));
  Print(profile, settings.out, bytes.size(), absl::Now() - start, terminal);
  return absl::OkStatus();
}

}  // namespace

int RunKvProfile(std::span<char* const> args, const Terminal& terminal) {
  Settings settings;
  return RunFlagsOnly(
      MakeCommand(settings), args, terminal,
      [&](const std::atomic<bool>& stop) { return Make(settings, stop, terminal); },
      "tandem: stopped; the same command goes on from here\n");
}

}  // namespace tandem::cli
