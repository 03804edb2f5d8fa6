tandem_library(tandem_worker_metrics SOURCES ${CMAKE_CURRENT_LIST_DIR}/worker_metrics.cc
  LINK absl::status prometheus-cpp::core)
