#include "tests/bench/kv-load/holder.h"

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "kvstore/store.h"
#include "kvstore/transfer/transfer.h"
#include "tests/bench/kv-load/plain_link.h"
#include "tests/support/io_thread.h"
#include "workers/engine/geometry.h"

namespace tandem::bench {
namespace {

using kvstore::HandoffServer;
using kvstore::Level;
using kvstore::Store;

/// What is served under one port.
struct Shelf {
  std::unique_ptr<Store> store;
  std::unique_ptr<HandoffServer> server;
};

absl::StatusOr<Shelf> OpenShelf(boost::asio::io_context& io, const workers::Engine& engine) {
  Shelf shelf;
  ASSIGN_OR_RETURN(shelf.store, Store::Open({}));
  ASSIGN_OR_RETURN(shelf.server, HandoffServer::Start(io, {.listen = "0.0.0.0:0",
                                                           .identity = engine.identity(),
                                                           .chunks = shelf.store.get()}));
  return shelf;
}

}  // namespace

absl::Status RunHolder(const LoadedContext& loaded, uint32_t threads) {
  ASSIGN_OR_RETURN(std::unique_ptr<workers::Engine> engine, MakeEngine(loaded, threads));
  RETURN_IF_ERROR(Compute(*engine, loaded.tokens));
  ASSIGN_OR_RETURN(const kvstore::codec::Codec codec, MakeCodec(loaded, *engine));
  ASSIGN_OR_RETURN(const kvstore::KvGeometry geometry, workers::GeometryOf(*engine));
  const PlainCodec plain(engine->layout(), geometry);
  const auto ids = kvstore::ChunkIds(kvstore::KvNamespace(engine->identity()), kTenant,
                                     loaded.tokens, kChunkTokens);
  testing_support::IoThread io;
  ASSIGN_OR_RETURN(const Shelf all, OpenShelf(io.io(), *engine));
  ASSIGN_OR_RETURN(const Shelf lossless, OpenShelf(io.io(), *engine));
  ASSIGN_OR_RETURN(const Shelf q1, OpenShelf(io.io(), *engine));
  PlainServer::Chunks plain_chunks;
  std::map<std::string, uint64_t> bytes;
  for (uint32_t i = 0; i < loaded.context.n_chunks(); ++i) {
    ASSIGN_OR_RETURN(const kvstore::KvChunk chunk,
                     engine->Extract(0, i * kChunkTokens, kChunkTokens));
    for (const Level level : {Level::kLossless, Level::kQ1}) {
      ASSIGN_OR_RETURN(const auto payload, codec.Encode(chunk, {.level = level}));
      const auto sealed = kvstore::StoredChunk::Seal({.id = ids[i], .level = level},
                                                     chunk.first_position, chunk.n_tokens, payload);
      all.store->Put(sealed);
      (level == Level::kQ1 ? q1 : lossless).store->Put(sealed);
      bytes[std::string(kvstore::codec::LevelName(level))] += sealed->bytes().size();
    }
    for (const auto& [format, name] :
         {std::pair(Format::kRaw, "raw"), {Format::kInt8, "int8"}, {Format::kZstd, "zstd"}}) {
      plain_chunks[format].push_back(plain.Encode(format, chunk));
      bytes[name] += plain_chunks[format].back().size();
    }
  }
  engine.reset();
  const PlainServer plain_server(std::move(plain_chunks));
  std::cout << nlohmann::json({{"ports",
                                {{"all", all.server->port()},
                                 {"lossless", lossless.server->port()},
                                 {"q1", q1.server->port()},
                                 {"plain", plain_server.port()}}},
                               {"bytes", bytes}})
            << std::endl;
  while (std::getchar() != EOF) {
  }
  // The plain server's thread has no end of its own.
  std::fflush(nullptr);
  _exit(0);
}

}  // namespace tandem::bench
