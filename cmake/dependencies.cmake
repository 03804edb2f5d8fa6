# Every outside part, found once. Which and why: docs/dependencies.md.
find_package(Threads REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(Protobuf REQUIRED)  # Debian ships no config file: module mode
find_package(absl CONFIG REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(yaml-cpp CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(Boost 1.81 REQUIRED)
find_package(PkgConfig REQUIRED)
if(TANDEM_TESTS)
  find_package(GTest CONFIG REQUIRED)
endif()
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(HIREDIS REQUIRED IMPORTED_TARGET hiredis)  # its config file is broken
find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)

# libllama: the pinned build that `./dev setup` made, or the system's own.
if(TANDEM_LLAMA_PREFIX)
  list(PREPEND CMAKE_PREFIX_PATH ${TANDEM_LLAMA_PREFIX})
endif()
if(TANDEM_CUDA)
  find_package(CUDAToolkit REQUIRED)
endif()
find_package(llama CONFIG REQUIRED)
