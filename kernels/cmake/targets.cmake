# The functions with which every folder declares its target, its tests and its benchmarks.
#
#   trivium_library(NAME trivium_kv SRCS a.cc b.cc DEPS trivium_base absl::status)
#   trivium_binary(NAME trivium-router SRCS main.cc DEPS ...)
#   trivium_test(NAME block_pool_test SRCS block_pool_test.cc DEPS trivium_kv [LABELS slow] [TIMEOUT 120])
#   trivium_bench(NAME matmul_bench SRCS matmul_bench.cc DEPS trivium_kernels)
#
# DEPS of a library are PUBLIC when its headers need them; use PRIVATE_DEPS for the rest.
include_guard(GLOBAL)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
find_program(TRIVIUM_CCACHE ccache)
if(TRIVIUM_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${TRIVIUM_CCACHE})
endif()

set(TRIVIUM_SANITIZE "" CACHE STRING "Sanitizers: empty, 'address,undefined', 'thread' or, with clang, 'fuzzer-no-link,address,undefined'")
get_filename_component(TRIVIUM_ROOT ${CMAKE_CURRENT_LIST_DIR}/../.. ABSOLUTE)
find_package(Threads REQUIRED)
find_package(GTest CONFIG REQUIRED)

add_library(trivium_flags INTERFACE)
# A check that fails names its file as the repository does, wherever that was checked out.
target_compile_options(trivium_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow
  -fmacro-prefix-map=${TRIVIUM_ROOT}/=)
target_include_directories(trivium_flags INTERFACE ${TRIVIUM_ROOT})
target_link_libraries(trivium_flags INTERFACE Threads::Threads)
if(TRIVIUM_SANITIZE)
  target_compile_options(trivium_flags INTERFACE -fsanitize=${TRIVIUM_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(trivium_flags INTERFACE -fsanitize=${TRIVIUM_SANITIZE})
  if(TRIVIUM_SANITIZE MATCHES thread)
    # Under this name protobuf's map fields grow by a member that the packaged library does not know. Our code and
    # libstdc++, whose shared_ptr counts otherwise in a way that TSan cannot follow, have names of their own.
    target_compile_options(trivium_flags INTERFACE -U__SANITIZE_THREAD__)
    target_compile_definitions(trivium_flags INTERFACE TRIVIUM_TSAN _GLIBCXX_TSAN=1)
  endif()
  if(TRIVIUM_SANITIZE MATCHES undefined)
    target_compile_options(trivium_flags INTERFACE -fno-sanitize-recover=undefined)
  endif()
endif()

function(trivium_library)
  cmake_parse_arguments(A "" "NAME" "SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${A_NAME} STATIC ${A_SRCS})
  target_link_libraries(${A_NAME} PUBLIC ${A_DEPS} PRIVATE trivium_flags ${A_PRIVATE_DEPS})
  target_include_directories(${A_NAME} PUBLIC ${TRIVIUM_ROOT})
endfunction()

function(trivium_binary)
  cmake_parse_arguments(A "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${A_NAME} ${A_SRCS})
  target_link_libraries(${A_NAME} PRIVATE trivium_flags ${A_DEPS})
  set_target_properties(${A_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endfunction()

# UCX hooks memory events in a way that g++'s TSan does not survive; tests therefore run without them there.
function(trivium_test)
  cmake_parse_arguments(A "" "NAME;TIMEOUT" "SRCS;DEPS;LABELS;ARGS" ${ARGN})
  add_executable(${A_NAME} ${A_SRCS})
  target_link_libraries(${A_NAME} PRIVATE trivium_flags ${A_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  # Most of a test is compiled for one run of milliseconds: a quarter less of the time that the whole build takes for it.
  target_compile_options(${A_NAME} PRIVATE $<$<CONFIG:Release>:-O1>)
  add_test(NAME ${A_NAME} COMMAND ${A_NAME} ${A_ARGS})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 300)
  endif()
  set_tests_properties(${A_NAME} PROPERTIES TIMEOUT ${A_TIMEOUT} LABELS "${A_LABELS}"
    ENVIRONMENT "UCX_MEM_EVENTS=n;TSAN_OPTIONS=suppressions=${TRIVIUM_ROOT}/kernels/cmake/tsan.supp ignore_noninstrumented_modules=1;LSAN_OPTIONS=suppressions=${TRIVIUM_ROOT}/kernels/cmake/lsan.supp print_suppressions=0")
endfunction()

function(trivium_bench)
  cmake_parse_arguments(A "" "NAME" "SRCS;DEPS" ${ARGN})
  find_package(benchmark CONFIG REQUIRED)
  trivium_binary(NAME ${A_NAME} SRCS ${A_SRCS} DEPS ${A_DEPS} benchmark::benchmark)
endfunction()
