#include "router/tokenizer/vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/status.h"
#include "router/tokenizer/chat_format.h"
#include "router/tokenizer/tokenizer.h"
#include "tests/checkpoint/gguf_builder.h"
#include "tests/base/temp_folder.h"

namespace facet {
namespace {

using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using Strings = std::vector<std::string>;

absl::StatusOr<GgufModel> Write(const testing::TempFolder& folder, const GgufBuilder& builder) {
  const std::string path = folder.File("model.gguf");
  builder.WriteFile(path);
  return GgufModel::Open(path);
}

GgufBuilder SpmFile() {
  GgufBuilder builder;
  builder.Add("general.architecture", "gemma3")
      .Add("tokenizer.ggml.model", "llama")
      .Add("tokenizer.ggml.tokens", Strings{"<unk>", "<s>", "</s>", "a", "\xFF"})
      .Add("tokenizer.ggml.scores", std::vector<float>{0, 0, 0, -1, -2})
      .Add("tokenizer.ggml.token_type", std::vector<int32_t>{2, 3, 3, 1, 77});
  return builder;
}

TEST(Vocabulary, ReadsASentencePieceFile) {
  const testing::TempFolder folder;
  const auto model = Write(folder, SpmFile()
                                       .Add("tokenizer.ggml.add_space_prefix", false)
                                       .Add("tokenizer.ggml.eot_token_id", uint32_t{3}));
  ASSERT_TRUE(model.ok()) << model.status();
  const absl::StatusOr<Vocabulary> vocabulary = ReadVocabulary(*model);
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_EQ(vocabulary->kind, TokenizerKind::kSentencePiece);
  EXPECT_THAT(vocabulary->tokens, ElementsAre("<unk>", "<s>", "</s>", "a", "\xFF"));
  EXPECT_EQ(vocabulary->scores[3], -1);
  EXPECT_EQ(vocabulary->types[0], TokenType::kUnknown);
  EXPECT_EQ(vocabulary->types[4], TokenType::kUndefined);  // 77 is no type
  // SentencePiece's own ids where the file names none.
  EXPECT_EQ(vocabulary->unknown, 0);
  EXPECT_EQ(vocabulary->bos, 1);
  EXPECT_EQ(vocabulary->eos, 2);
  EXPECT_EQ(vocabulary->eot, 3);
  EXPECT_EQ(vocabulary->add_bos, std::nullopt);
  EXPECT_EQ(vocabulary->add_space_prefix, false);
}

TEST(Vocabulary, ReadsAByteLevelFile) {
  const testing::TempFolder folder;
  const auto model = Write(folder, GgufBuilder()
                                       .Add("tokenizer.ggml.model", "gpt2")
                                       .Add("tokenizer.ggml.pre", "smollm")
                                       .Add("tokenizer.ggml.tokens", Strings{"a", "b", "ab"})
                                       .Add("tokenizer.ggml.merges", Strings{"a b"})
                                       .Add("tokenizer.ggml.add_bos_token", false));
  ASSERT_TRUE(model.ok()) << model.status();
  const absl::StatusOr<Vocabulary> vocabulary = ReadVocabulary(*model);
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_EQ(vocabulary->pre, "smollm");
  EXPECT_THAT(vocabulary->merges, ElementsAre("a b"));
  EXPECT_EQ(vocabulary->types[2], TokenType::kNormal);
  EXPECT_EQ(vocabulary->bos, std::nullopt);
  EXPECT_EQ(vocabulary->add_bos, false);

  const auto tokenizer = Tokenizer::Create(*model);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->Encode("aba"), ElementsAre(2, 0));
}

TEST(Vocabulary, TurnMarkersAreControlTokensWhateverTheFileSays) {
  const testing::TempFolder folder;
  const auto model =
      Write(folder, GgufBuilder()
                        .Add("tokenizer.ggml.model", "llama")
                        .Add("tokenizer.ggml.tokens", Strings{"<｜User｜>", "<|im_end|>", "</s>"})
                        .Add("tokenizer.ggml.token_type", std::vector<int32_t>{4, 1, 4}));
  ASSERT_TRUE(model.ok()) << model.status();
  const absl::StatusOr<Vocabulary> vocabulary = ReadVocabulary(*model);
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_THAT(vocabulary->types,
              ElementsAre(TokenType::kControl, TokenType::kControl, TokenType::kUserDefined));
}

TEST(Vocabulary, ErrorsNameTheKey) {
  const testing::TempFolder folder;
  const auto error = [&](const GgufBuilder& builder) {
    const auto model = Write(folder, builder);
    FACET_CHECK(model.ok(), "{}", MessageOf(model.status()));
    return MessageOf(Tokenizer::Create(*model).status());
  };
  EXPECT_THAT(error(GgufBuilder().Add("general.architecture", "llama")),
              HasSubstr("tokenizer.ggml.model"));
  EXPECT_THAT(error(GgufBuilder().Add("tokenizer.ggml.model", "bert")),
              HasSubstr("tokenizer.ggml.model is 'bert'"));
  EXPECT_THAT(error(GgufBuilder().Add("tokenizer.ggml.model", "gpt2")),
              HasSubstr("tokenizer.ggml.pre"));
  EXPECT_THAT(error(GgufBuilder().Add("tokenizer.ggml.model", "llama")),
              HasSubstr("tokenizer.ggml.tokens"));
  EXPECT_THAT(error(GgufBuilder()
                        .Add("tokenizer.ggml.model", "llama")
                        .Add("tokenizer.ggml.tokens", Strings{"a", "b"})
                        .Add("tokenizer.ggml.scores", std::vector<float>{1})),
              HasSubstr("tokenizer.ggml.scores has 1 entries for 2 tokens"));
  EXPECT_THAT(error(SpmFile().Add("tokenizer.ggml.bos_token_id", uint32_t{5})),
              HasSubstr("bos_token_id is 5, but there are 5 tokens"));
  EXPECT_THAT(error(SpmFile().Add("tokenizer.ggml.eos_token_id", int32_t{-1})),
              HasSubstr("eos_token_id is -1"));
  EXPECT_THAT(error(SpmFile().Add("tokenizer.ggml.add_bos_token", "yes")),
              HasSubstr("add_bos_token"));
}

TEST(Vocabulary, AModelWithoutMarkersHasNoChatFormat) {
  const testing::TempFolder folder;
  const auto model = Write(folder, SpmFile());
  ASSERT_TRUE(model.ok()) << model.status();
  const auto tokenizer = Tokenizer::Create(*model);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const absl::Status status = ChatFormat::Choose(*model, **tokenizer).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(status), HasSubstr("model has no chat format"));
}

}  // namespace
}  // namespace facet
