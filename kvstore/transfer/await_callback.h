// Waits in a coroutine, without blocking its thread, for what another thread calls back with.
#pragma once

#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>
#include <utility>

namespace tandem::kvstore {

/// Calls start(callback) and returns what the callback is called with, once, on any thread. Not to
/// be cancelled: what `start` refers to stays alive until then.
template <typename Result, typename Start>
boost::asio::awaitable<Result> AwaitCallback(Start start) {
  namespace asio = boost::asio;
  const auto executor = co_await asio::this_coro::executor;
  auto initiate = [&start, executor](auto handler) {
    auto shared = std::make_shared<decltype(handler)>(std::move(handler));
    start([shared, executor](Result result) {
      asio::post(executor,
                 [shared, result = std::move(result)]() mutable { (*shared)(std::move(result)); });
    });
  };
  co_return co_await asio::async_initiate<decltype(asio::use_awaitable), void(Result)>(
      std::move(initiate), asio::use_awaitable);
}

}  // namespace tandem::kvstore
