#include "client/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "client/table.h"

namespace facet {
namespace {

// The least time in which the machine could have done an operation's work, and what forbids less.
struct Bound {
  double seconds = 0;
  std::string_view name;
};

// Attention is computed in float32, products in int8.
Bound BoundOf(const v1::OperationTotals& operation, const MachineLimits& limits, int ranks) {
  const bool is_float = operation.name() == "attention";
  const double reading = operation.bytes() * ranks / (limits.read_gb_s * 1e9);
  const double computing =
      operation.operations() * ranks / ((is_float ? limits.f32_gop_s : limits.int8_gop_s) * 1e9);
  if (reading >= computing) return {reading, "memory"};
  return {computing, is_float ? "float32" : "int8"};
}

void AddTo(v1::OperationTotals& into, const v1::OperationTotals& from, int sign) {
  into.set_calls(into.calls() + sign * from.calls());
  into.set_seconds(into.seconds() + sign * from.seconds());
  into.set_bytes(into.bytes() + sign * from.bytes());
  into.set_operations(into.operations() + sign * from.operations());
}

// into += sign x from; operations are matched by name.
void AddTo(v1::StepProfile& into, const v1::StepProfile& from, int sign) {
  into.set_steps(into.steps() + sign * from.steps());
  into.set_rows(into.rows() + sign * from.rows());
  into.set_seconds(into.seconds() + sign * from.seconds());
  for (const v1::OperationTotals& operation : from.operations()) {
    auto& all = *into.mutable_operations();
    auto found = std::find_if(all.begin(), all.end(), [&](const v1::OperationTotals& each) {
      return each.name() == operation.name();
    });
    if (found == all.end()) {
      all.Add()->set_name(operation.name());
      found = all.end() - 1;
    }
    AddTo(*found, operation, sign);
  }
}

double Rate(double amount, double seconds) { return seconds > 0 ? amount / seconds * 1e-9 : 0; }

std::string Number(double value, int digits) {
  return value > 0 ? fmt::format("{:.{}f}", value, digits) : "-";
}

}  // namespace

absl::Status SetProfiling(const Connection& connection, std::chrono::seconds duration) {
  v1::ProfileRequest request;
  request.set_duration_us(std::chrono::microseconds(duration).count());
  v1::ProfileResponse response;
  return connection.Ask([&](const RouterStubs& router, grpc::ClientContext& context) {
    return router.status->Profile(&context, request, &response);
  });
}

absl::StatusOr<ClusterProfile> ReadProfile(const Connection& connection) {
  v1::GetStatusResponse response;
  FACET_RETURN_IF_ERROR(
      connection.Ask([&](const RouterStubs& router, grpc::ClientContext& context) {
        return router.status->GetStatus(&context, {}, &response);
      }));
  ClusterProfile profile;
  for (const v1::GroupStatus& group : response.groups()) {
    profile.ranks = std::max(profile.ranks, group.ranks());
    AddTo(profile.totals, group.profile(), 1);
  }
  return profile;
}

absl::StatusOr<ClusterProfile> Since(const ClusterProfile& before, const ClusterProfile& after) {
  if (after.totals.steps() < before.totals.steps()) {
    return FailedPrecondition("a group has formed anew while its steps were profiled");
  }
  if (after.totals.steps() == before.totals.steps()) {
    return FailedPrecondition("no step was profiled: do the workers know how?");
  }
  ClusterProfile difference = after;
  AddTo(difference.totals, before.totals, -1);
  return difference;
}

std::string ToTable(const ClusterProfile& profile, const std::optional<MachineLimits>& limits) {
  const v1::StepProfile& totals = profile.totals;
  const auto steps = static_cast<double>(totals.steps());
  std::string text = fmt::format(
      "{} steps of {:.1f} tokens, {:.3f} ms each, on the leader of {}\n\n", totals.steps(),
      static_cast<double>(totals.rows()) / steps, totals.seconds() / steps * 1e3,
      profile.ranks == 1 ? "one rank" : fmt::format("{} ranks", profile.ranks));
  std::vector<std::string> header = {"OPERATION", "CALLS", "MS", "SHARE", "GB/S", "GOP/S"};
  if (limits) header.insert(header.end(), {"OF LIMIT", "LIMIT"});
  Table table(header);
  for (const v1::OperationTotals& operation : totals.operations()) {
    if (operation.calls() == 0 && operation.seconds() <= 0) continue;
    const double seconds = operation.seconds();
    std::vector<std::string> row = {
        operation.name(),
        fmt::format("{:.0f}", static_cast<double>(operation.calls()) / steps),
        fmt::format("{:.3f}", seconds / steps * 1e3),
        fmt::format("{:.1f} %", 100 * seconds / totals.seconds()),
        Number(Rate(operation.bytes(), seconds), 1),
        Number(Rate(operation.operations(), seconds), 0)};
    if (limits) {
      const Bound bound = BoundOf(operation, *limits, profile.ranks);
      const bool known = bound.seconds > 0 && seconds > 0;
      row.push_back(known ? fmt::format("{:.0f} %", 100 * bound.seconds / seconds) : "-");
      row.push_back(known ? std::string(bound.name) : "-");
    }
    table.AddRow(row);
  }
  return text + table.Render();
}

void Write(const ClusterProfile& profile, const std::optional<MachineLimits>& limits,
           JsonWriter& json) {
  const v1::StepProfile& totals = profile.totals;
  json.BeginObject().Key("steps").Integer(totals.steps()).Key("rows").Integer(totals.rows());
  json.Key("seconds").Number(totals.seconds()).Key("ranks").Integer(profile.ranks);
  json.Key("operations").BeginArray();
  for (const v1::OperationTotals& operation : totals.operations()) {
    json.BeginObject().Key("name").String(operation.name());
    json.Key("calls").Integer(operation.calls()).Key("seconds").Number(operation.seconds());
    json.Key("bytes").Number(operation.bytes()).Key("operations").Number(operation.operations());
    if (limits) {
      const Bound bound = BoundOf(operation, *limits, profile.ranks);
      json.Key("bound_s").Number(bound.seconds).Key("bound").String(bound.name);
    }
    json.EndObject();
  }
  json.EndArray().EndObject();
}

}  // namespace facet
