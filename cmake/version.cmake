# The version that `--version` prints: the project's, the commit, and libllama's.
set(TANDEM_COMMIT "" CACHE STRING "The commit to stamp in; empty: what git says")
set(TANDEM_STAMP "${TANDEM_COMMIT}")
find_package(Git QUIET)
if(NOT TANDEM_STAMP AND GIT_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} describe --always --dirty --abbrev=12
    WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} OUTPUT_VARIABLE TANDEM_STAMP
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT TANDEM_STAMP)
  set(TANDEM_STAMP "unknown")
endif()
file(STRINGS ${CMAKE_SOURCE_DIR}/cmake/llama.pin pin REGEX "^LLAMA_(VERSION|COMMIT)=")
foreach(line ${pin})
  string(REGEX MATCH "^([A-Z_]+)=(.*)$" unused "${line}")
  set(TANDEM_${CMAKE_MATCH_1} "${CMAKE_MATCH_2}")
endforeach()
# A system's libllama says itself what it is; workers of different builds must not exchange KV.
string(FIND "${TANDEM_LLAMA_COMMIT}" "${LLAMA_BUILD_COMMIT}" at)
if(NOT at EQUAL 0)
  set(TANDEM_LLAMA_COMMIT "${LLAMA_BUILD_COMMIT}")
  set(TANDEM_LLAMA_VERSION "${LLAMA_VERSION}")
endif()
configure_file(${CMAKE_SOURCE_DIR}/cmake/version.h.in ${CMAKE_BINARY_DIR}/generated/base/version.h)
