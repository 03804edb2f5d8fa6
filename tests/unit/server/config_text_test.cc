// --help, --version, --check-config and the documentation's table.
#include "server/config_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <sstream>

#include "server/config_properties.h"
#include "tests/unit/server/command_line.h"

namespace tandem::server {
namespace {

using testing::HasSubstr;

std::string Printed(std::vector<std::string> args) {
  const auto parsed = CommandLine{std::move(args), {}}.Parse();
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  if (!parsed.ok() || !parsed->exit) return "";
  EXPECT_EQ(parsed->exit->code, 0);
  return parsed->exit->text;
}

TEST(Help, ShowsEveryPropertyOnceUnderItsRole) {
  const std::string help = Printed({"--help"});
  EXPECT_EQ(help, Printed({"-h"}));
  for (const Property& property : Properties()) {
    std::string flag = property.name;
    std::replace(flag.begin(), flag.end(), '_', '-');
    const std::string line = "\n  --" + flag + "\n";
    const size_t at = help.find(line);
    ASSERT_NE(at, std::string::npos) << flag;
    EXPECT_EQ(help.find(line, at + 1), std::string::npos) << flag;
  }
  EXPECT_LT(help.find("Every role:"), help.find("  --role"));
  EXPECT_LT(help.find("Routers:"), help.find("  --listen"));
  EXPECT_LT(help.find("Workers:"), help.find("  --phase"));
  EXPECT_THAT(std::regex_replace(help, std::regex("\\s+"), " "),
              HasSubstr("Allowed: a duration from 10ms to 1m. Default: 250ms."));
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100u) << line;
}

TEST(Help, IsPrintedWhateverElseIsWrong) {
  EXPECT_NE(Printed({"--help", "--max-queued=none"}), "");
}

TEST(Version, NamesBothParts) {
  EXPECT_TRUE(std::regex_match(
      Printed({"--version"}),
      std::regex("tandemd [0-9.]+ \\([^)]*\\), libllama [0-9.]+ \\([0-9a-f]{12}\\)\n")));
}

TEST(CheckConfig, PrintsWhatIsInEffectAndWhereItComesFrom) {
  const std::string text = Printed({"--model=/m.gguf", "--max-queued=7", "--check-config"});
  EXPECT_THAT(text, HasSubstr("\nmodel: /m.gguf  # from --model\n"));
  EXPECT_THAT(text, HasSubstr("\nmax_queued: 7  # from --max-queued\n"));
  EXPECT_THAT(text, HasSubstr("\nmax_requests: 256\n"));
  EXPECT_THAT(text, HasSubstr("\ntenants: [default]\n"));
  EXPECT_THAT(text, HasSubstr("\ncpus: []\n"));
  EXPECT_THAT(text, HasSubstr("\nphase: auto\n"));
}

TEST(CheckConfig, RefusesWhatTheDaemonWouldRefuse) {
  EXPECT_THAT((CommandLine{{"--check-config"}, {}}.Error()), HasSubstr("model is not set"));
}

TEST(ToYaml, IsReadBack) {
  Config config;
  config.role = Role::kWorker;
  config.phase = Phase::kPrefill;
  config.model = "/models/a \"b\"\\ '#: x.gguf";
  config.routers = {"r1:1", "[::1]:2"};
  config.cpus = {3, 1};
  config.tenants = {"a", "true", "0", "null", "-"};
  config.metrics_listen = "";
  config.retry_after = absl::Milliseconds(1500);
  config.max_prompt_bytes = 1000;
  config.gpu_layers = -1;
  Config again;
  std::map<std::string, std::string> origins;
  const std::string yaml = ToYaml(config, {{"model", "--model"}});
  const absl::Status status = ApplyYaml(yaml, "t.yaml", again, origins);
  ASSERT_TRUE(status.ok()) << status << "\n" << yaml;
  for (const Property& property : Properties()) {
    EXPECT_EQ(PropertyValues(property, again), PropertyValues(property, config)) << property.name;
  }
}

TEST(Docs, TableIsTheTableOfProperties) {
  std::ifstream file(CONFIGURE_DOC);
  std::stringstream text;
  text << file.rdbuf();
  const std::string begin = "<!-- begin: tandemd --print-config-docs -->\n";
  const std::string end = "<!-- end -->";
  const std::string doc = text.str();
  const size_t from = doc.find(begin), to = doc.find(end);
  ASSERT_NE(from, std::string::npos) << CONFIGURE_DOC;
  ASSERT_NE(to, std::string::npos) << CONFIGURE_DOC;
  EXPECT_EQ(doc.substr(from + begin.size(), to - from - begin.size()),
            "\n" + Printed({"--print-config-docs"}) + "\n")
      << "copy the output of tandemd --print-config-docs between the markers";
}

}  // namespace
}  // namespace tandem::server
