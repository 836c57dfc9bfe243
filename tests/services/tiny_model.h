#ifndef FACET_TESTS_SERVICES_TINY_MODEL_H_
#define FACET_TESTS_SERVICES_TINY_MODEL_H_

// A model file of a few tokens, for routers that need a vocabulary and nothing else, and what fake
// leaders say in it.

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/prng.h"
#include "tests/checkpoint/gguf_builder.h"
#include "tests/services/fake_leader.h"

namespace facet::testing {

// Ids of the tiny vocabulary: SentencePiece with byte tokens.
inline constexpr TokenId kBos = 1, kEos = 2, kByte0 = 3, kSpaceA = 259, kSpaceB = 260, kA = 261,
                         kB = 262, kC = 263, kSpace = 264, kEn = 265, kD = 266,
                         kVocabularySize = 271;
inline constexpr int kContext = 4096;

inline TokenId ByteToken(unsigned char byte) { return kByte0 + byte; }

inline void WriteTinyModel(const std::string& path, bool with_chat = true) {
  const std::string space = "\xE2\x96\x81";  // U+2581
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back(fmt::format("<0x{:02X}>", byte));
    types.push_back(6);
  }
  for (const std::string& piece :
       {space + "a", space + "b", std::string("a"), std::string("b"), std::string("c"), space,
        std::string("EN"), std::string("D"), std::string("\n")}) {
    tokens.push_back(piece);
    types.push_back(1);
  }
  tokens.push_back(with_chat ? "<start_of_turn>" : "<x>");
  tokens.push_back(with_chat ? "<end_of_turn>" : "<y>");
  tokens.push_back("<pad>");
  types.insert(types.end(), {3, 3, 3});
  std::vector<float> scores(tokens.size(), 0.0f);
  GgufBuilder()
      .Add("general.architecture", "gemma3")
      .Add("general.name", "Tiny")
      .Add("gemma3.context_length", uint32_t{kContext})
      .Add("tokenizer.ggml.model", "llama")
      .Add("tokenizer.ggml.tokens", tokens)
      .Add("tokenizer.ggml.scores", scores)
      .Add("tokenizer.ggml.token_type", types)
      .Add("tokenizer.ggml.bos_token_id", uint32_t{kBos})
      .Add("tokenizer.ggml.eos_token_id", uint32_t{kEos})
      .Add("tokenizer.ggml.add_space_prefix", false)
      .AddTensor("output_norm.weight", {4}, {1, 1, 1, 1})
      .WriteFile(path);
}

// "a", "b" or "c", by seed and position.
inline TokenId LetterAt(uint64_t sequence_seed, int position) {
  return kA + static_cast<TokenId>(Mix64(sequence_seed, position) % 3);
}
inline std::string LettersOf(uint64_t sequence_seed, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += static_cast<char>('a' + LetterAt(sequence_seed, i) - kA);
  }
  return text;
}
inline FakeLeader::Script Letters() {
  return [](const v1::Submit& submit, int position) { return LetterAt(submit.seed(), position); };
}
}  // namespace facet::testing

#endif  // FACET_TESTS_SERVICES_TINY_MODEL_H_
