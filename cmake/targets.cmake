# How our own targets are built: warnings, sanitizers, include root; and protobuf libraries.
add_library(tandem_options INTERFACE)
target_compile_options(tandem_options INTERFACE -Wall -Wextra -Werror -Wno-missing-field-initializers)
target_include_directories(tandem_options INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}/generated)
# An index out of range ends the process with its place, instead of reading something else.
target_compile_definitions(tandem_options INTERFACE _GLIBCXX_ASSERTIONS)
# Frames are kept so that a crash in production has a usable backtrace.
target_compile_options(tandem_options INTERFACE -g1 -fno-omit-frame-pointer)
if(TANDEM_SANITIZE)
  target_compile_options(tandem_options INTERFACE -fsanitize=${TANDEM_SANITIZE})
  target_link_options(tandem_options INTERFACE -fsanitize=${TANDEM_SANITIZE})
endif()
find_program(MOLD mold)
if(MOLD)
  target_link_options(tandem_options INTERFACE -fuse-ld=mold)
endif()
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
endif()

# tandem_library(NAME SOURCES… LINK targets… [PRIVATE targets…])
function(tandem_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK;PRIVATE" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC tandem_options ${ARG_LINK} PRIVATE ${ARG_PRIVATE})
endfunction()

# tandem_proto_library(NAME FILE.proto…): C++ and gRPC code for protos below proto/.
function(tandem_proto_library name)
  set(out ${CMAKE_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${out})
  set(sources)
  foreach(proto ${ARGN})
    string(REGEX REPLACE "^proto/(.*)\\.proto$" "\\1" stem ${proto})
    set(generated ${out}/${stem}.pb.cc ${out}/${stem}.pb.h ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h)
    add_custom_command(OUTPUT ${generated}
      COMMAND protobuf::protoc --proto_path=${CMAKE_SOURCE_DIR}/proto --cpp_out=${out}
        --grpc_out=${out} --plugin=protoc-gen-grpc=${GRPC_CPP_PLUGIN} ${stem}.proto
      DEPENDS ${CMAKE_SOURCE_DIR}/${proto} VERBATIM)
    list(APPEND sources ${generated})
  endforeach()
  add_library(${name} STATIC ${sources})
  target_include_directories(${name} SYSTEM PUBLIC ${out})
  target_link_libraries(${name} PUBLIC protobuf::libprotobuf gRPC::grpc++)
  if(TANDEM_SANITIZE)
    target_compile_options(${name} PUBLIC -fsanitize=${TANDEM_SANITIZE})
  endif()
endfunction()

# tandem_test(NAME SOURCES… LINK targets… [LABELS labels…] [SERIAL]): a GoogleTest program, one ctest entry a
# case. SERIAL: nothing runs beside it.
include(GoogleTest)
function(tandem_test name)
  cmake_parse_arguments(ARG "SERIAL" "TIMEOUT" "SOURCES;LINK;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE tandem_options ${ARG_LINK} GTest::gmock GTest::gtest_main)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # g++ 12 sees overlaps in std::string's operator+ that are not there (GCC bug 105651).
    target_compile_options(${name} PRIVATE -Wno-restrict)
  endif()
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
    RUN_SERIAL ${ARG_SERIAL})
endfunction()

# tandem_fuzz_test(NAME FUZZER source TEST source LINK targets…): NAME_fuzz_test runs the fuzz target
# over seeds and fixed mutations; with TANDEM_FUZZ, fuzz_NAME is libFuzzer's program (`./dev fuzz NAME`).
function(tandem_fuzz_test name)
  cmake_parse_arguments(ARG "" "FUZZER;TEST" "LINK" ${ARGN})
  tandem_test(${name}_fuzz_test SOURCES ${ARG_FUZZER} ${ARG_TEST} LINK ${ARG_LINK} LABELS fuzz)
  if(TANDEM_FUZZ)
    add_executable(fuzz_${name} ${ARG_FUZZER})
    target_link_libraries(fuzz_${name} PRIVATE tandem_options ${ARG_LINK})
    target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
  endif()
endfunction()
