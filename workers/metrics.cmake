tandem_library(tandem_worker_metrics
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/worker_metrics.cc ${CMAKE_CURRENT_LIST_DIR}/kv_metrics.cc
    ${CMAKE_CURRENT_LIST_DIR}/link_metrics.cc
  LINK absl::status prometheus-cpp::core tandem_kv_store tandem_kvstore tandem_codec)
