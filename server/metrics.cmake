tandem_library(tandem_router_metrics SOURCES ${CMAKE_CURRENT_LIST_DIR}/router_metrics.cc
  LINK absl::status absl::strings prometheus-cpp::core)
tandem_library(tandem_metrics_server SOURCES ${CMAKE_CURRENT_LIST_DIR}/metrics_server.cc
  LINK absl::statusor prometheus-cpp::core PRIVATE tandem_base tandem_config_values prometheus-cpp::pull)
