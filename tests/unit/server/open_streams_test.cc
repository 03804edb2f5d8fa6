#include "server/open_streams.h"

#include <gtest/gtest.h>

#include <vector>

namespace tandem::server {
namespace {

constexpr absl::Time kStart = absl::UnixEpoch();

TEST(OpenStreamsTest, TellsEveryOpenCallOfTheLostWorker) {
  OpenStreams streams;
  std::vector<std::string> told;
  const auto tell = [&](const std::string& reason) { told.push_back(reason); };
  streams.Add("a", tell);
  const OpenStreams::Id ended = streams.Add("a", tell);
  streams.Add("b", tell);
  streams.Remove("a", ended);
  streams.Lose("a", "silent");
  EXPECT_EQ(told, std::vector<std::string>{"silent"});
  streams.Lose("nobody", "silent");
  streams.Remove("nobody", 7);
}

TEST(OpenStreamsTest, ACallMayEndWhileItIsTold) {
  OpenStreams streams;
  OpenStreams::Id id = 0;
  id = streams.Add("a", [&](const std::string&) { streams.Remove("a", id); });
  streams.Lose("a", "gone");
  streams.Lose("a", "gone again");
}

TEST(OpenStreamsTest, BlameIsSharedByAllThatWereThereWhenItBroke) {
  OpenStreams streams;
  std::vector<OpenStreams::Id> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(streams.Add("a", [](const std::string&) {}));
  for (const OpenStreams::Id id : ids) {
    EXPECT_DOUBLE_EQ(streams.ShareOfLoss("a", kStart), 0.25);
    streams.Remove("a", id);
  }
  // Much later it is another loss.
  streams.Add("a", [](const std::string&) {});
  EXPECT_DOUBLE_EQ(streams.ShareOfLoss("a", kStart + absl::Minutes(1)), 1);
}

}  // namespace
}  // namespace tandem::server
