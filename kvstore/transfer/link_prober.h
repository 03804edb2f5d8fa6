// Measures the links from other nodes to this one where no handoff does: asks each node in turn for
// some bytes that mean nothing, and times them. Owned by the worker; the other end's answer is part
// of HandoffServer.
//
// A visit is a connection of its own, so that TCP's round trip is of now. It asks for filler only
// when the bandwidth was not measured lately, for so much that the link should be busy for 40 ms or
// seven round trips; of a link that nobody knows, first for 48 KiB and then for four times as much,
// until it takes long enough. A probe that does not agree with what is known is followed by another
// at once: the link may have changed. Filler may take a share of the time, over all links
// (ProbeBudget), of which the other end keeps account for its own port as well: nodes with many
// peers visit them in turn, those whose bandwidth was measured longest ago first.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kvstore/transfer/frame_socket.h"
#include "kvstore/transfer/link_table.h"
#include "kvstore/transfer/probe_budget.h"

namespace tandem::kvstore {

/// Thread-safe.
class LinkProber {
 public:
  struct Options {
    /// This node's own data address, as others know it.
    std::string address;
    /// Where results go. Must outlive the prober.
    LinkTable* links = nullptr;
    /// Of the time that links may be busy with probes, at most; 0: nothing is probed.
    double share = 0.01;
    /// Peers on this node's own host are not visited: nothing lies between.
    bool skip_own_host = true;
  };
  /// REQUIRES: one thread runs `io`.
  LinkProber(boost::asio::io_context& io, Options options);
  ~LinkProber();

  /// The data addresses of all that KV may come from, from now on.
  void SetPeers(std::vector<std::string> addresses);
  /// Ends what runs and waits for it, as HandoffServer::Stop does.
  void Stop();

 private:
  class Loop;
  const std::shared_ptr<Loop> loop_;
};

/// Answers one PROBE, as far as `budget` allows. `links`: see HandoffServer::Options.
boost::asio::awaitable<absl::Status> AnswerProbe(FrameSocket& peer, const Frame& frame,
                                                 ProbeBudget& budget, LinkTable* links,
                                                 absl::Duration limit);

}  // namespace tandem::kvstore
