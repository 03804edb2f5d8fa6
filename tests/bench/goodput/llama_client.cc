#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "tests/bench/goodput/load_client.h"

namespace tandem::bench {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;

constexpr auto kToTuple = asio::as_tuple(asio::use_awaitable);
constexpr char kEvent[] = "data: ";

std::string BodyFor(const Arrival& arrival) {
  return nlohmann::json{{"prompt", arrival.prompt},
                        {"n_predict", arrival.output_tokens},
                        {"stream", true},
                        {"ignore_eos", true},
                        {"cache_prompt", false},
                        // Greedy, in the quickest way that it has.
                        {"temperature", 0},
                        {"samplers", {"top_k"}},
                        {"top_k", 1}}
      .dump();
}

class LlamaClient : public LoadClient {
 public:
  explicit LlamaClient(int port) : server_(asio::ip::address_v4::loopback(), port) {}

  std::vector<Outcome> Run(std::span<const Arrival> trace, double rate) override {
    outcomes_.assign(trace.size(), {});
    asio::io_context io{1};
    std::vector<std::string> bodies;
    for (const Arrival& arrival : trace) bodies.push_back(BodyFor(arrival));
    clock_ = Stopwatch();
    const auto begin = std::chrono::steady_clock::now();
    for (size_t i = 0; i < trace.size(); ++i) {
      outcomes_[i] = {.due_s = trace[i].at_s / rate,
                      .prompt_tokens = static_cast<uint32_t>(trace[i].prompt.size()),
                      .wanted_tokens = trace[i].output_tokens};
      const auto due =
          begin + std::chrono::microseconds(static_cast<int64_t>(outcomes_[i].due_s * 1e6));
      asio::co_spawn(io, Request(std::move(bodies[i]), due, outcomes_[i]), asio::detached);
    }
    io.run();
    return std::move(outcomes_);
  }

 private:
  asio::awaitable<void> Request(std::string body, std::chrono::steady_clock::time_point due,
                                Outcome& outcome) {
    auto executor = co_await asio::this_coro::executor;
    asio::steady_timer timer(executor, due);
    co_await timer.async_wait(kToTuple);
    outcome.error = co_await Stream(std::move(body), outcome);
    outcome.end_s = clock_.seconds();
  }

  asio::awaitable<std::string> Stream(std::string body, Outcome& outcome) {
    boost::beast::tcp_stream stream(co_await asio::this_coro::executor);
    auto [refused] = co_await stream.async_connect(server_, kToTuple);
    if (refused) co_return refused.message();
    stream.socket().set_option(tcp::no_delay(true));
    http::request<http::string_body> request{http::verb::post, "/completion", 11};
    request.set(http::field::host, "127.0.0.1");
    request.set(http::field::content_type, "application/json");
    request.set(http::field::connection, "close");
    request.body() = std::move(body);
    request.prepare_payload();
    auto [unsent, n_sent] = co_await http::async_write(stream, request, kToTuple);
    if (unsent) co_return unsent.message();

    boost::beast::flat_buffer buffer;
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(boost::none);
    auto [headless, n_head] = co_await http::async_read_header(stream, buffer, parser, kToTuple);
    if (headless) co_return headless.message();
    if (parser.get().result() != http::status::ok) {
      co_return absl::StrCat("HTTP ", parser.get().result_int());
    }
    std::string text;
    std::array<char, 16384> piece;
    while (!parser.is_done()) {
      parser.get().body().data = piece.data();
      parser.get().body().size = piece.size();
      auto [error, n] = co_await http::async_read_some(stream, buffer, parser, kToTuple);
      if (error && error != http::error::need_buffer) co_return error.message();
      text.append(piece.data(), piece.size() - parser.get().body().size);
      TakeEvents(text, outcome);
    }
    co_return outcome.tokens == outcome.wanted_tokens
        ? ""
        : absl::StrCat(outcome.tokens, " tokens of ", outcome.wanted_tokens);
  }

  /// Takes whole events from the beginning of `text`.
  void TakeEvents(std::string& text, Outcome& outcome) {
    for (size_t end = text.find("\n\n"); end != std::string::npos; end = text.find("\n\n")) {
      if (text.starts_with(kEvent)) {
        const auto event = nlohmann::json::parse(text.begin() + sizeof(kEvent) - 1,
                                                 text.begin() + static_cast<long>(end));
        if (event.value("stop", false)) {
          // It sends nothing for a token that only begins a character: the count comes last.
          outcome.tokens = event.value("tokens_predicted", 0u);
        } else {
          outcome.token_at_s.push_back(clock_.seconds());
          outcome.token_counts.push_back(1);
        }
      }
      text.erase(0, end + 2);
    }
  }

  const tcp::endpoint server_;
  std::vector<Outcome> outcomes_;
  Stopwatch clock_;
};

}  // namespace

std::unique_ptr<LoadClient> MakeLlamaClient(int port) {
  return std::make_unique<LlamaClient>(port);
}

}  // namespace tandem::bench
