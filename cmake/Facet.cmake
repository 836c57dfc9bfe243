# Targets link only what they declare; tests/tree/include_table_test.py reads every #include
# against the table in the README.

# facet_join(name library|test file ...): with FACET_JOIN compiles the target's sources as one,
# except the files named: those whose unnamed namespace has a name that another source's has too,
# and those that need symbols which not every program that links the library provides.
function(facet_join name kind)
  if(FACET_JOIN STREQUAL "ON" OR (FACET_JOIN STREQUAL "TESTS" AND kind STREQUAL "test"))
    set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
    set_source_files_properties(${ARGN} TARGET_DIRECTORY ${name} PROPERTIES
                                SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
endfunction()

# facet_library(name SOURCES a.cc ... DEPS target ... [APART a.cc ...] [OWN_FLAGS])
# APART: what facet_join() leaves out.
# OWN_FLAGS: it will be compiled with others than the rest, and so one by one, without precompiled
# headers.
function(facet_library name)
  cmake_parse_arguments(ARG "OWN_FLAGS" "" "SOURCES;DEPS;APART" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS})
  if(NOT ARG_OWN_FLAGS)
    facet_precompile(${name} library)
    facet_join(${name} library ${ARG_APART})
  endif()
endfunction()

# facet_emulated_kernels(name SOURCES a.cu b.cc ... DEPS target ...): a library of the sources that
# nvcc compiles, compiled by the host compiler: the emulator's language.cuh comes first on their
# include path, and therefore in place of kernels/cuda's.
function(facet_emulated_kernels name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  facet_library(${name} SOURCES ${ARG_SOURCES} DEPS facet_cuda_emulator ${ARG_DEPS} OWN_FLAGS)
  set_source_files_properties(${ARG_SOURCES} TARGET_DIRECTORY ${name} PROPERTIES
                              LANGUAGE CXX)
  target_include_directories(${name} BEFORE PRIVATE
    ${PROJECT_SOURCE_DIR}/tests/cuda_emulator/include)
  target_compile_options(${name} PRIVATE ${FACET_EMULATOR_OPTIONS})
endfunction()

# facet_binary(name SOURCES a.cc ... DEPS target ...)
function(facet_binary name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
endfunction()

# facet_suite(name SOURCES a_test.cc ... DEPS target ... [APART a_test.cc ...]): tests that several
# binaries link, each with a subject of its own; compiled once.
function(facet_suite name)
  if(FACET_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;APART" ${ARGN})
  add_library(${name} OBJECT ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS} GTest::gmock)
  facet_precompile(${name} library)
  facet_join(${name} test ${ARG_APART})
endfunction()

# facet_test(name SOURCES a_test.cc ... DEPS target ... [APART a_test.cc ...] [LABELS label ...]
#            [TIMEOUT s])
# One ctest entry per binary; runs in the source directory so that tests find their data.
# Not with FACET_FUZZ, whose compiler need not understand the tests.
function(facet_test name)
  if(FACET_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;APART;LABELS" ${ARGN})
  facet_binary(${name} SOURCES ${ARG_SOURCES} DEPS ${ARG_DEPS} GTest::gmock_main)
  facet_precompile(${name} test)
  facet_join(${name} test ${ARG_APART})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()

# facet_fuzzer(name SOURCES a_fuzz.cc DEPS target ...): a libFuzzer target, only with FACET_FUZZ.
# Its ctest entry is a smoke run of 20 s that starts from seeds/<name>/ beside it, where that is.
function(facet_fuzzer name)
  if(NOT FACET_FUZZ)
    return()
  endif()
  facet_binary(${name} ${ARGN})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set(corpus ${PROJECT_BINARY_DIR}/corpus/${name})  # what this and earlier runs found
  file(MAKE_DIRECTORY ${corpus})
  set(seeds ${CMAKE_CURRENT_SOURCE_DIR}/seeds/${name})
  if(NOT EXISTS ${seeds})
    set(seeds)
  endif()
  add_test(NAME ${name} COMMAND ${name} -max_total_time=20 -rss_limit_mb=1024 -timeout=5
           ${corpus} ${seeds})
endfunction()

# facet_proto(name a.proto ...): messages and gRPC stubs.
function(facet_proto name)
  add_library(${name} STATIC)
  target_include_directories(${name} PUBLIC ${PROJECT_BINARY_DIR}/protos)
  target_link_libraries(${name} PUBLIC gRPC::grpc++ protobuf::libprotobuf)
  foreach(proto IN LISTS ARGN)
    get_filename_component(dir "${proto}" DIRECTORY)
    get_filename_component(stem "${proto}" NAME_WLE)
    set(out "${PROJECT_BINARY_DIR}/protos/${dir}/${stem}")
    add_custom_command(
      OUTPUT ${out}.pb.cc ${out}.pb.h ${out}.grpc.pb.cc ${out}.grpc.pb.h
      COMMAND protobuf::protoc -I ${PROJECT_SOURCE_DIR}/protos
              --cpp_out=${PROJECT_BINARY_DIR}/protos --grpc_out=${PROJECT_BINARY_DIR}/protos
              --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin>
              ${PROJECT_SOURCE_DIR}/protos/${proto}
      DEPENDS ${PROJECT_SOURCE_DIR}/protos/${proto} VERBATIM)
    target_sources(${name} PRIVATE ${out}.pb.cc ${out}.grpc.pb.cc)
    list(APPEND messages ${out}.pb.cc)
  endforeach()
  target_compile_options(${name} PRIVATE -w ${FACET_SERVICE_OPTIONS})
  facet_join(${name} library ${messages})
endfunction()
