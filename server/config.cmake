tandem_library(tandem_config_values SOURCES ${CMAKE_CURRENT_LIST_DIR}/config_values.cc
  LINK absl::statusor absl::strings absl::time PRIVATE tandem_base)
set(config_sources config config_properties config_text config_validate tenant_limits)
list(TRANSFORM config_sources REPLACE "(.+)" "${CMAKE_CURRENT_LIST_DIR}/\\1.cc")
tandem_library(tandem_config SOURCES ${config_sources} LINK tandem_config_values absl::status
  PRIVATE tandem_base tandem_scheduler_core yaml-cpp)
