#include "router/service/served_model.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <utility>

#include "base/status.h"
#include "checkpoint/gguf.h"

namespace facet {
namespace {

absl::StatusOr<int> ContextTokens(const GgufModel& file, const std::string& architecture) {
  const std::string key = architecture + ".context_length";
  FACET_ASSIGN_OR_RETURN(const int64_t tokens, file.GetInt(key));
  if (tokens < 2 || tokens > std::numeric_limits<int>::max()) {
    return InvalidArgument("{} is {}, which is no context length", key, tokens);
  }
  return static_cast<int>(tokens);
}

std::vector<TokenId> EndTokens(const Tokenizer& tokenizer,
                               const absl::StatusOr<ChatFormat>& chat_format) {
  std::vector<TokenId> ids;
  for (TokenId id = 0; id < tokenizer.size(); ++id) {
    if (tokenizer.IsEndOfGeneration(id)) ids.push_back(id);
  }
  if (chat_format.ok()) {
    ids.insert(ids.end(), chat_format->stop_tokens().begin(), chat_format->stop_tokens().end());
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServedModel>> ServedModel::Load(const std::string& path,
                                                               std::string name) {
  FACET_ASSIGN_OR_RETURN(const GgufModel file, GgufModel::Open(path));
  auto model = std::make_unique<ServedModel>();
  model->name = name.empty() ? std::filesystem::path(path).stem().string() : std::move(name);
  FACET_ASSIGN_OR_RETURN(model->architecture, file.GetString("general.architecture"));
  if (file.Has("general.name")) {
    FACET_ASSIGN_OR_RETURN(model->description, file.GetString("general.name"));
  }
  FACET_ASSIGN_OR_RETURN(model->context_tokens, ContextTokens(file, model->architecture));
  for (const GgufTensor& tensor : file.tensors()) model->parameters += tensor.elements();
  model->digest = file.digest();
  FACET_ASSIGN_OR_RETURN(model->tokenizer, Tokenizer::Create(file));
  model->chat_format = ChatFormat::Choose(file, *model->tokenizer);
  model->end_tokens = EndTokens(*model->tokenizer, model->chat_format);
  return model;
}

}  // namespace facet
