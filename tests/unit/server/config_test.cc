// Where values come from, which source wins, and every message about a wrong one.
#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "server/config_properties.h"
#include "tests/unit/server/command_line.h"

namespace tandem::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// A file that is gone with the object.
class TempFile {
 public:
  explicit TempFile(const std::string& text)
      : path_(testing::TempDir() + "tandem_config_" + std::to_string(getpid()) + ".yaml") {
    std::ofstream(path_) << text;
  }
  ~TempFile() { unlink(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

std::string YamlError(std::string_view yaml) {
  Config config;
  std::map<std::string, std::string> origins;
  return std::string(ApplyYaml(yaml, "t.yaml", config, origins).message());
}

Config Yaml(std::string_view yaml) {
  Config config;
  std::map<std::string, std::string> origins;
  const absl::Status status = ApplyYaml(yaml, "t.yaml", config, origins);
  EXPECT_TRUE(status.ok()) << status;
  return config;
}

TEST(ConfigSources, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  const TempFile file("model: m\nmax_requests: 2\nmax_queued: 2\nstep_tokens: 102\n");
  const auto parsed = CommandLine{{"--config", file.path(), "--max-requests=4"},
                                  {{"TANDEM_MAX_REQUESTS", "3"}, {"TANDEM_MAX_QUEUED", "3"}}}
                          .Parse();
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->config.max_requests, 4u);
  EXPECT_EQ(parsed->config.max_queued, 3u);
  EXPECT_EQ(parsed->config.step_tokens, 102u);
  EXPECT_EQ(parsed->config.chunk_tokens, 256u);
  EXPECT_EQ(parsed->origins.at("max_requests"), "--max-requests");
  EXPECT_EQ(parsed->origins.at("max_queued"), "TANDEM_MAX_QUEUED");
  EXPECT_EQ(parsed->origins.at("step_tokens"), file.path() + ":4");
  EXPECT_EQ(parsed->origins.count("chunk_tokens"), 0u);
  EXPECT_FALSE(parsed->exit.has_value());
}

TEST(ConfigSources, FileComesFromTheFlagBeforeTheEnvironment) {
  const TempFile file("model: from-file\n");
  const auto flag = CommandLine{{"--config=" + file.path()}, {{"TANDEM_CONFIG", "/nonexistent"}}};
  EXPECT_EQ(flag.Parse()->config.model, "from-file");
  const auto environment = CommandLine{{}, {{"TANDEM_CONFIG", file.path()}}};
  EXPECT_EQ(environment.Parse()->config.model, "from-file");
}

TEST(ConfigSources, UnreadableFilesAreNamed) {
  const auto missing = CommandLine{{"--config=/nonexistent/t.yaml"}, {}}.Parse();
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("'/nonexistent/t.yaml'"));
  EXPECT_EQ((CommandLine{{"--config=/"}, {}}.Parse().status().code()), absl::StatusCode::kNotFound);
  const TempFile large(std::string((1 << 20) + 1, '#'));
  EXPECT_THAT((CommandLine{{"--config", large.path()}, {}}.Error()), HasSubstr("larger than 1MiB"));
}

TEST(ConfigFlags, AreWrittenInEveryWay) {
  const auto parsed = CommandLine{
      {"--model=m", "--max-requests", "7", "--max_queued=8", "--insecure", "--no-flash-attention",
       "--gpu-layers", "-1", "--tenants=a, b", "--cpus=0,3", "--handoff-buffer-bytes=64MiB",
       "--report-interval=100ms", "--metrics-listen="},
      {}}.Parse();
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const Config& config = parsed->config;
  EXPECT_EQ(config.max_requests, 7u);
  EXPECT_EQ(config.max_queued, 8u);
  EXPECT_TRUE(config.insecure);
  EXPECT_FALSE(config.flash_attention);
  EXPECT_EQ(config.gpu_layers, -1);
  EXPECT_THAT(config.tenants, ElementsAre("a", "b"));
  EXPECT_THAT(config.cpus, ElementsAre(0, 3));
  EXPECT_EQ(config.handoff_buffer_bytes, 64u << 20);
  EXPECT_EQ(config.report_interval, absl::Milliseconds(100));
  EXPECT_EQ(config.metrics_listen, "");
}

TEST(ConfigFlags, BooleansMayCarryAValue) {
  const auto insecure = [](const char* flag) {
    return CommandLine{{"--model=m", flag}, {}}.Parse()->config.insecure;
  };
  EXPECT_TRUE(insecure("--insecure=true"));
  EXPECT_TRUE(insecure("--insecure=1"));
  EXPECT_FALSE(insecure("--insecure=false"));
  EXPECT_FALSE(insecure("--no-insecure"));
}

TEST(ConfigFlags, LastOneWins) {
  const auto parsed = CommandLine{{"--model=m", "--max-queued=1", "--max-queued=2"}, {}}.Parse();
  EXPECT_EQ(parsed->config.max_queued, 2u);
}

TEST(ConfigFlags, FaultsAreNamed) {
  const auto error = [](std::vector<std::string> args) { return CommandLine{args, {}}.Error(); };
  EXPECT_EQ(error({"--max-request=1"}),
            "unknown flag '--max-request'; did you mean '--max-requests'?; see --help");
  EXPECT_EQ(error({"--chek-config"}),
            "unknown flag '--chek-config'; did you mean '--check-config'?; see --help");
  EXPECT_EQ(error({"--entirely-different"}), "unknown flag '--entirely-different'; see --help");
  EXPECT_EQ(error({"--no-model"}), "unknown flag '--no-model'; see --help");
  EXPECT_THAT(error({"--help=1"}), HasSubstr("unknown flag '--help'"));
  EXPECT_THAT(error({"--" + std::string(100'000, 'x')}), HasSubstr("unknown flag '--xxx"));
  EXPECT_LT(error({"--" + std::string(100'000, 'x')}).size(), 300u);
  EXPECT_EQ(error({"model.gguf"}),
            "unexpected argument 'model.gguf': everything is said by flags of the form "
            "--key=value; see --help");
  EXPECT_THAT(error({"--"}), HasSubstr("unexpected argument '--'"));
  EXPECT_EQ(error({"--max-queued"}),
            "--max-queued needs a value; allowed is a whole number from 1 to 1000000");
  EXPECT_EQ(error({"--config", "--insecure"}),
            "--config needs a value; allowed is the path of a YAML file");
}

TEST(ConfigValues, FaultsNameKeyValueOriginAndWhatIsAllowed) {
  const auto error = [](const char* flag) { return CommandLine{{flag}, {}}.Error(); };
  EXPECT_EQ(error("--max-requests=0"),
            "max_requests is '0' (from --max-requests): out of range; allowed is a whole number "
            "from 1 to 1000000");
  EXPECT_EQ(error("--max_requests=many"),
            "max_requests is 'many' (from --max_requests): not a whole number; allowed is a whole "
            "number from 1 to 1000000");
  EXPECT_EQ(error("--role=boss"),
            "role is 'boss' (from --role): not allowed; allowed is one of all, router, worker, "
            "store");
  EXPECT_EQ(error("--phase=both"),
            "phase is 'both' (from --phase): not allowed; allowed is one of prefill, decode, "
            "mixed, auto");
  EXPECT_EQ(error("--insecure=maybe"),
            "insecure is 'maybe' (from --insecure): neither true nor false; allowed is true or "
            "false");
  EXPECT_EQ(error("--drain-timeout=30"),
            "drain_timeout is '30' (from --drain-timeout): not a duration such as 250ms, 5s or "
            "2m; allowed is a duration from 0 to 1h");
  EXPECT_EQ(error("--handoff-lease=1ms"),
            "handoff_lease is '1ms' (from --handoff-lease): out of range; allowed is a duration "
            "from 100ms to 1h");
  EXPECT_EQ(error("--max-prompt-bytes=big"),
            "max_prompt_bytes is 'big' (from --max-prompt-bytes): not a size such as 4096, 64MiB "
            "or 1GiB; allowed is a size from 1 to 1GiB");
  EXPECT_EQ(error("--handoff-buffer-bytes=1KiB"),
            "handoff_buffer_bytes is '1KiB' (from --handoff-buffer-bytes): out of range; allowed "
            "is a size from 1MiB to 16TiB");
  EXPECT_EQ(error("--listen=localhost"),
            "listen is 'localhost' (from --listen): the port is missing: host:port; allowed is "
            "host:port");
  EXPECT_EQ(error("--listen="),
            "listen is '' (from --listen): the port is missing: host:port; allowed is host:port");
  EXPECT_EQ(error("--routers=a:1,b:0"),
            "routers is 'a:1,b:0' (from --routers): 'b:0': the port is 0; allowed is a list, "
            "each host:port with a port from 1 to 65535");
  EXPECT_EQ(error("--cpus=1,1"),
            "cpus is '1,1' (from --cpus): '1' is there twice; allowed is a list, each a whole "
            "number from 0 to 4095");
  EXPECT_EQ(error("--tenants=a b"),
            "tenants is 'a b' (from --tenants): not allowed; allowed is a list, each 1 to 64 "
            "letters, digits, '.', '_' and '-'");
  EXPECT_THAT(error("--advertise-host=a b"), HasSubstr("a host's name or address, or nothing"));
}

TEST(ConfigValues, EnvironmentIsNamedInFaults) {
  EXPECT_EQ((CommandLine{{}, {{"TANDEM_LOG_LEVEL", "loud"}}}.Error()),
            "log_level is 'loud' (from TANDEM_LOG_LEVEL): not allowed; allowed is one of debug, "
            "info, warn, error");
  EXPECT_THAT((CommandLine{{}, {{"TANDEM_MAX_QUEUED", ""}}}.Error()),
              HasSubstr("max_queued is ''"));
}

TEST(ConfigValues, DefaultsAreAllowed) {
  Config config;
  for (const Property& property : Properties()) {
    const auto values = PropertyValues(property, Config{});
    if (values.empty() && !IsList(property)) continue;
    EXPECT_TRUE(SetProperty(property, values, "the default", config).ok()) << property.name;
  }
}

TEST(ConfigYaml, ReadsScalarsAndSequences) {
  const Config config = Yaml(
      "# a comment\n"
      "role: worker\nphase: decode\nmodel: /models/my model.gguf\n"
      "routers:\n  - r1:8470\n  - '[::1]:8470'\n"
      "cpus: [0, 2]\ntenants: a,b\ninsecure: yes\nmax-queued: 5\nmetrics_listen: \"\"\n");
  EXPECT_EQ(config.role, Role::kWorker);
  EXPECT_EQ(config.phase, Phase::kDecode);
  EXPECT_EQ(config.model, "/models/my model.gguf");
  EXPECT_THAT(config.routers, ElementsAre("r1:8470", "[::1]:8470"));
  EXPECT_THAT(config.cpus, ElementsAre(0, 2));
  EXPECT_THAT(config.tenants, ElementsAre("a", "b"));
  EXPECT_TRUE(config.insecure);
  EXPECT_EQ(config.max_queued, 5u);
  EXPECT_EQ(config.metrics_listen, "");
}

TEST(ConfigYaml, EmptyDocumentsSayNothing) {
  EXPECT_EQ(YamlError(""), "");
  EXPECT_EQ(YamlError("# only a comment\n"), "");
  EXPECT_EQ(YamlError("---\n...\n"), "");
}

TEST(ConfigYaml, FaultsNameFileAndLine) {
  EXPECT_EQ(YamlError("model: m\n\nmax_request: 1\n"),
            "unknown key 'max_request' (from t.yaml:3); did you mean 'max_requests'?");
  EXPECT_EQ(YamlError("max_requests: 0\n"),
            "max_requests is '0' (from t.yaml:1): out of range; allowed is a whole number from 1 "
            "to 1000000");
  EXPECT_EQ(YamlError("model: a\nmodel: b\n"),
            "model is there twice (the second time in t.yaml:2)");
  EXPECT_EQ(YamlError("max-queued: 1\nmax_queued: 2\n"),
            "max_queued is there twice (the second time in t.yaml:2)");
  EXPECT_EQ(YamlError("model:\n"), "model is without a value (from t.yaml:1); allowed is a path");
  EXPECT_EQ(YamlError("model: [a]\n"), "model is a list (from t.yaml:1); allowed is a path");
  EXPECT_EQ(YamlError("model: {a: b}\n"), "model is a mapping (from t.yaml:1); allowed is a path");
  EXPECT_THAT(YamlError("tenants: [[a]]\n"), HasSubstr("an element that is not a plain value"));
  EXPECT_THAT(YamlError("just text\n"), HasSubstr("expected lines of the form 'key: value'"));
  EXPECT_THAT(YamlError("- a\n- b\n"), HasSubstr("expected lines of the form 'key: value'"));
  EXPECT_THAT(YamlError("[a]: b\n"), HasSubstr("expected lines of the form 'key: value'"));
  EXPECT_THAT(YamlError("model: a\ntenants: [a\n"), HasSubstr("t.yaml:3: not valid YAML: "));
  EXPECT_THAT(YamlError("model: 'open\nrole: worker\n  \n\nx"), HasSubstr("t.yaml:5: not valid"));
  EXPECT_THAT(YamlError("model: \"a\\nb\"\n"), HasSubstr("a character that no path has"));
  EXPECT_THAT(YamlError("model: a\n---\nmodel: b\n"), HasSubstr("more than one YAML document"));
}

TEST(ConfigYaml, LongValuesAreCutInMessages) {
  EXPECT_LT(YamlError("max_queued: " + std::string(100'000, '1') + "\n").size(), 400u);
  EXPECT_LT(YamlError(std::string(1'000, 'k') + ": 1\n").size(), 400u);
}

}  // namespace
}  // namespace tandem::server
