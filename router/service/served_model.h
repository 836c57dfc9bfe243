#ifndef FACET_ROUTER_SERVICE_SERVED_MODEL_H_
#define FACET_ROUTER_SERVICE_SERVED_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "router/tokenizer/chat_format.h"
#include "router/tokenizer/tokenizer.h"

namespace facet {

// What a router knows of the model it serves: all of it from the file's metadata, no tensor.
// Immutable and thread-safe.
struct ServedModel {
  // `name` is what requests call it; empty: the file's name without .gguf. The file is not mapped
  // any more when this returns.
  static absl::StatusOr<std::unique_ptr<ServedModel>> Load(const std::string& path,
                                                           std::string name);

  std::string name;
  std::string architecture;
  std::string description;
  int64_t parameters = 0;
  int context_tokens = 0;  // that the model was made for; groups may offer less
  uint64_t digest = 0;
  std::unique_ptr<Tokenizer> tokenizer;
  absl::StatusOr<ChatFormat> chat_format = absl::UnknownError("");  // an error: the model has none
  std::vector<TokenId> end_tokens;  // that end an answer unless the request says ignore_eos
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_SERVED_MODEL_H_
