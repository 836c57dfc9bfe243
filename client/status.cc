#include "client/status.h"

#include <fmt/ostream.h>

#include <ostream>
#include <thread>

#include "base/status.h"
#include "client/json.h"
#include "client/table.h"

namespace facet {
namespace {

constexpr std::chrono::milliseconds kReadyPoll{20};

std::string KvUse(const v1::GroupStatus& group) {
  if (group.kv_tokens_total() <= 0) return "-";
  return fmt::format("{} of {} ({:.0f} %)", group.kv_tokens_used(), group.kv_tokens_total(),
                     100.0 * static_cast<double>(group.kv_tokens_used()) /
                         static_cast<double>(group.kv_tokens_total()));
}

std::string ToTable(const v1::GetStatusResponse& response) {
  Table table({"GROUP", "STATE", "MODEL", "DEVICE", "RANKS", "RUNNING", "WAITING", "KV TOKENS",
               "PROMPT TOK/S", "OUTPUT TOK/S"},
              {1, 2, 3});
  for (const v1::GroupStatus& group : response.groups()) {
    table.AddRow({group.address(), group.state(), group.model().name(), group.device(),
                  fmt::format("{}", group.ranks()), fmt::format("{}", group.running()),
                  fmt::format("{}", group.waiting()), KvUse(group),
                  fmt::format("{:.1f}", group.prompt_tokens_per_s()),
                  fmt::format("{:.1f}", group.output_tokens_per_s())});
  }
  return table.Render() + fmt::format("requests: {} running, {} queued\n",
                                      response.running_requests(), response.queued_requests());
}

std::string ToJson(const v1::GetStatusResponse& response) {
  JsonWriter json;
  json.BeginObject().Key("groups").BeginArray();
  for (const v1::GroupStatus& group : response.groups()) {
    json.BeginObject().Key("address").String(group.address());
    json.Key("ready").Bool(group.ready());
    json.Key("state").String(group.state());
    json.Key("model").String(group.model().name());
    json.Key("fingerprint").String(group.model().fingerprint());
    json.Key("device").String(group.device());
    json.Key("ranks").Integer(group.ranks());
    json.Key("running").Integer(group.running());
    json.Key("waiting").Integer(group.waiting());
    json.Key("kv_tokens_used").Integer(group.kv_tokens_used());
    json.Key("kv_tokens_total").Integer(group.kv_tokens_total());
    json.Key("prompt_tokens_per_s").Number(group.prompt_tokens_per_s());
    json.Key("output_tokens_per_s").Number(group.output_tokens_per_s()).EndObject();
  }
  json.EndArray();
  json.Key("queued_requests").Integer(response.queued_requests());
  json.Key("running_requests").Integer(response.running_requests()).EndObject();
  return json.text() + "\n";
}

absl::StatusOr<v1::GetStatusResponse> Ask(const Connection& connection) {
  v1::GetStatusResponse response;
  FACET_RETURN_IF_ERROR(
      connection.Ask([&](const RouterStubs& router, grpc::ClientContext& context) {
        return router.status->GetStatus(&context, {}, &response);
      }));
  return response;
}

// OK if enough groups are ready; Unavailable says what is not.
absl::Status CheckReady(const v1::GetStatusResponse& response, int wanted) {
  int ready = 0;
  std::string others;
  for (const v1::GroupStatus& group : response.groups()) {
    if (group.ready()) {
      ++ready;
    } else {
      others += fmt::format("; {}: {}", group.address(), group.state());
    }
  }
  if (ready >= wanted) return absl::OkStatus();
  return Unavailable("{} of {} groups are ready{}", ready, wanted, others);
}

absl::Status WaitUntilReady(const Connection& connection, int wanted) {
  const auto timeout = connection.options.timeout.value_or(kReadyTimeout);
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (true) {
    const absl::StatusOr<v1::GetStatusResponse> response = Ask(connection);
    const absl::Status status = response.ok() ? CheckReady(*response, wanted) : response.status();
    if (status.code() != absl::StatusCode::kUnavailable) return status;
    if (std::chrono::steady_clock::now() >= deadline) return status;
    std::this_thread::sleep_for(kReadyPoll);
  }
}

}  // namespace

absl::Status RunStatus(const Connection& connection, const StatusOptions& options,
                       std::ostream& out) {
  if (options.until_ready > 0) {
    FACET_RETURN_IF_ERROR(WaitUntilReady(connection, options.until_ready));
  }
  while (true) {
    FACET_ASSIGN_OR_RETURN(const v1::GetStatusResponse response, Ask(connection));
    if (options.watch && options.clear_screen) out << "\x1b[H\x1b[2J";
    out << (options.json ? ToJson(response) : ToTable(response)) << std::flush;
    if (!options.watch) return absl::OkStatus();
    std::this_thread::sleep_for(*options.watch);
  }
}

}  // namespace facet
