# Headers that many sources read, read once: for builds from nothing, in which reading takes a third
# of the time. Sources include what they use all the same; the builds without this see to that.
#
# GCC wants the same flags of who uses a header as of who made it. So there are four: for libraries
# and for programs, without and with what the services are built on.

set(facet_common_headers
  <algorithm> <array> <atomic> <chrono> <condition_variable> <cstddef> <cstdint> <deque> <functional>
  <map> <memory> <mutex> <optional> <random> <set> <span> <sstream> <string> <string_view> <thread>
  <unordered_map> <utility> <variant> <vector>
  <absl/status/status.h> <absl/status/statusor.h> <fmt/format.h>)
set(facet_service_headers
  <absl/synchronization/mutex.h> <grpcpp/grpcpp.h> <facet/v1/inference.grpc.pb.h>
  <facet/v1/shard.grpc.pb.h>)
set(facet_test_headers <gmock/gmock.h> <gtest/gtest.h>)

# facet_make_precompiled(): the four; before any target that reads them.
function(facet_make_precompiled)
  set(nothing ${PROJECT_BINARY_DIR}/precompiled.cc)
  file(CONFIGURE OUTPUT ${nothing} CONTENT "int main() { return 0; }\n")
  add_library(facet_precompiled_library OBJECT ${nothing})
  add_executable(facet_precompiled_test ${nothing})
  target_link_libraries(facet_precompiled_test PRIVATE GTest::gmock_main)
  target_precompile_headers(facet_precompiled_library PRIVATE ${facet_common_headers})
  target_precompile_headers(facet_precompiled_test PRIVATE ${facet_common_headers} ${facet_test_headers})
  set(made facet_precompiled_library facet_precompiled_test)
  if(FACET_SERVICES)
    add_library(facet_precompiled_service_library OBJECT ${nothing})
    add_executable(facet_precompiled_service_test ${nothing})
    target_link_libraries(facet_precompiled_service_test PRIVATE GTest::gmock_main)
    target_precompile_headers(facet_precompiled_service_library PRIVATE
      ${facet_common_headers} ${facet_service_headers})
    target_precompile_headers(facet_precompiled_service_test PRIVATE
      ${facet_common_headers} ${facet_service_headers} ${facet_test_headers})
    foreach(name IN ITEMS facet_precompiled_service_library facet_precompiled_service_test)
      target_link_libraries(${name} PRIVATE facet_protos)
      target_compile_options(${name} PRIVATE ${FACET_SERVICE_OPTIONS})
    endforeach()
    list(APPEND made facet_precompiled_service_library facet_precompiled_service_test)
  endif()
  foreach(name IN LISTS made)
    target_link_libraries(${name} PRIVATE Threads::Threads absl::status absl::statusor fmt::fmt)
    set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL ON)
  endforeach()
endfunction()

# facet_precompile(target library|test): has a target of this folder read them. The folders that
# set(facet_room_of_services ON) get the services' headers and options.
function(facet_precompile target kind)
  if(facet_room_of_services)
    target_compile_options(${target} PRIVATE ${FACET_SERVICE_OPTIONS})
    set(kind service_${kind})
  endif()
  if(FACET_PRECOMPILE)
    target_precompile_headers(${target} REUSE_FROM facet_precompiled_${kind})
  endif()
endfunction()
