// llama.cpp's own server, built from the same source, gives the same greedy text for the same
// prompts. Runs where the binary is: `./dev peer` builds it, TANDEM_LLAMA_SERVER names another.
#include <gtest/gtest.h>

#include <boost/asio.hpp>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/e2e/harness.h"

namespace tandem::e2e {
namespace {

/// A port that was free a moment ago.
int FreePort() {
  boost::asio::io_context io;
  boost::asio::ip::tcp::acceptor acceptor(io, {boost::asio::ip::address_v4::loopback(), 0});
  return acceptor.local_endpoint().port();
}

std::string Http(int port, const std::string& request) {
  boost::asio::ip::tcp::iostream stream("127.0.0.1", std::to_string(port));
  stream << request << std::flush;
  const std::string all{std::istreambuf_iterator<char>(stream), {}};
  const size_t body = all.find("\r\n\r\n");
  return all.find(" 200 ") == std::string::npos || body == std::string::npos ? ""
                                                                             : all.substr(body + 4);
}

std::string Get(int port, const std::string& path) {
  return Http(port, "GET " + path + " HTTP/1.0\r\n\r\n");
}

std::string Post(int port, const std::string& path, const std::string& body) {
  return Http(port, "POST " + path +
                        " HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: " +
                        std::to_string(body.size()) + "\r\n\r\n" + body);
}

TEST(LlamaServerTest, GivesTheSameGreedyTokens) {
  const char* given = std::getenv("TANDEM_LLAMA_SERVER");
  const std::string binary = given != nullptr ? given : TANDEM_PEER_SERVER;
  if (!std::filesystem::exists(binary)) {
    GTEST_SKIP() << "no llama-server at '" << binary << "'; `./dev peer` builds it";
  }
  const int port = FreePort();
  // One slot, one thread and no prompt cache: then its steps have the shapes of ours.
  Process server({binary,
                  "-m",
                  DemoModel(),
                  "--host",
                  "127.0.0.1",
                  "--port",
                  std::to_string(port),
                  "-t",
                  "1",
                  "-tb",
                  "1",
                  "-c",
                  "2048",
                  "-np",
                  "1",
                  "-fa",
                  "on",
                  "--no-warmup",
                  "--no-cache-prompt",
                  "--cache-ram",
                  "0",
                  "--fit",
                  "off"},
                 testing::TempDir() + "tandem-llama-server.log");
  ASSERT_TRUE(WaitFor([&] { return !Get(port, "/health").empty() || !server.Running(); }));
  ASSERT_TRUE(server.Running()) << server.Log();

  Cluster cluster;
  int compared = 0;
  for (const std::string prompt :
       {"Once upon a time", "The king said",
        "In the middle of the dark forest there stood a house, and", "Grüße aus Köln,",
        "\"Who is there?\" asked the old woman.\n\n\"It is I,\" said", "The fox ran over the hill",
        "Far away in the land to which the swallows fly", "She",
        "A long time ago, when the world was young and animals could speak, there was a wolf "
        "who"}) {
    const Generated ours = cluster.client().Generate(Greedy(prompt, 40));
    ASSERT_TRUE(ours.status.ok()) << ours.status.error_message();
    nlohmann::json request;
    request["prompt"] = prompt;
    request["n_predict"] = 40;
    request["temperature"] = 0.0;
    request["cache_prompt"] = false;
    request["return_tokens"] = true;
    const std::string body = Post(port, "/completion", request.dump());
    ASSERT_FALSE(body.empty()) << server.Log();
    const auto reply = nlohmann::json::parse(body);
    EXPECT_EQ(reply["content"].get<std::string>(), ours.text) << "prompt: " << prompt;
    ++compared;
  }
  std::cout << "llama-server: " << compared << " prompts give the same text\n";
}

}  // namespace
}  // namespace tandem::e2e
