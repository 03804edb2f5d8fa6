# What a node needs that keeps chunks, with an engine or without: no libllama.
tandem_library(tandem_registration SOURCES ${CMAKE_CURRENT_LIST_DIR}/cluster_client.cc
  LINK tandem_kv_chunk tandem_proto tandem_base)
tandem_library(tandem_store_service SOURCES ${CMAKE_CURRENT_LIST_DIR}/store_service.cc
  LINK tandem_kv_store tandem_codec tandem_proto tandem_base absl::flat_hash_set)
