#include "client/models.h"

#include <fmt/ostream.h>

#include <ostream>

#include "base/status.h"
#include "client/json.h"
#include "client/table.h"

namespace facet {
namespace {

std::string ToJson(const v1::ListModelsResponse& response) {
  JsonWriter json;
  json.BeginObject().Key("models").BeginArray();
  for (const v1::ModelInfo& model : response.models()) {
    json.BeginObject().Key("name").String(model.name());
    json.Key("architecture").String(model.architecture());
    json.Key("description").String(model.description());
    json.Key("parameters").Integer(model.parameters());
    json.Key("context_tokens").Integer(model.context_tokens());
    json.Key("vocabulary_size").Integer(model.vocabulary_size());
    json.Key("digest").String(fmt::format("{:016x}", model.digest()));
    json.Key("fingerprint").String(model.fingerprint()).EndObject();
  }
  json.EndArray().EndObject();
  return json.text();
}

std::string ToTable(const v1::ListModelsResponse& response) {
  Table table({"NAME", "ARCHITECTURE", "DESCRIPTION", "PARAMETERS", "CONTEXT", "VOCABULARY"},
              {1, 2});
  for (const v1::ModelInfo& model : response.models()) {
    table.AddRow({model.name(), model.architecture(), model.description(),
                  fmt::format("{:.0f} M", static_cast<double>(model.parameters()) / 1e6),
                  fmt::format("{}", model.context_tokens()),
                  fmt::format("{}", model.vocabulary_size())});
  }
  return table.Render();
}

}  // namespace

absl::Status RunModels(const Connection& connection, const ModelsOptions& options,
                       std::ostream& out) {
  v1::ListModelsResponse response;
  FACET_RETURN_IF_ERROR(
      connection.Ask([&](const RouterStubs& router, grpc::ClientContext& context) {
        return router.models->List(&context, {}, &response);
      }));
  out << (options.json ? ToJson(response) + "\n" : ToTable(response)) << std::flush;
  return absl::OkStatus();
}

}  // namespace facet
