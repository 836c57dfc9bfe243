#ifndef FACET_TESTS_CLUSTER_HTTP_H_
#define FACET_TESTS_CLUSTER_HTTP_H_

#include <string>
#include <string_view>

namespace facet::testing {

// The body of what `url` ("http://127.0.0.1:port/path") answers with 200, within a minute for each
// step; empty if it does not.
std::string HttpGet(std::string_view url);

// Of a page for Prometheus: the sum over all label sets of the sample `metric`; 0 if there is none.
// With `labels`, such as `pool="full"`, only of the sets that contain that text.
double SumOfMetric(std::string_view page, std::string_view metric, std::string_view labels = "");

}  // namespace facet::testing

#endif  // FACET_TESTS_CLUSTER_HTTP_H_
