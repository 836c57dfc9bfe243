// The tokenizers of the two models that Facet is tested with, against llama.cpp's ids for 12,000
// texts (tests/golden/tokenizer/make_golden.py).

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/gguf.h"
#include "router/tokenizer/chat_format.h"
#include "router/tokenizer/detokenizer.h"
#include "router/tokenizer/tokenizer.h"
#include "router/tokenizer/utf8.h"
#include "tests/tokenizer/golden_reader.h"

namespace facet {
namespace {

struct Case {
  const char* model;
  const char* golden;  // the answers' name in tests/golden/tokenizer
};
const Case kGemma{"gemma-3-270m-q4_k_m.gguf", "gemma3"};
const Case kSmolLm{"SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"};

std::string ModelPath(const Case& c) {
  const char* directory = std::getenv("FACET_MODEL_DIR");
  return std::string(directory != nullptr ? directory : ".cache/models") + "/" + c.model;
}

class TokenizerGolden : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::string path = ModelPath(GetParam());
    ASSERT_TRUE(std::filesystem::exists(path))
        << path << " is missing: run tests/run.sh, which fetches it, or set FACET_MODEL_DIR";
    absl::StatusOr<GgufModel> model = GgufModel::Open(path);
    ASSERT_TRUE(model.ok()) << model.status();
    absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(*model);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    absl::StatusOr<ChatFormat> format = ChatFormat::Choose(*model, *tokenizer_);
    ASSERT_TRUE(format.ok()) << format.status();
    format_.emplace(*std::move(format));
  }

  std::vector<std::vector<TokenId>> Answers() const {
    GoldenReader reader(GetParam().golden + std::string(".ids"));
    std::vector<std::vector<TokenId>> answers(reader.Varint());
    for (std::vector<TokenId>& ids : answers) ids = reader.Ids();
    return answers;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<ChatFormat> format_;
};

TEST_P(TokenizerGolden, EncodesAsLlamaCpp) {
  const std::vector<std::string> texts = GoldenTexts();
  const std::vector<std::vector<TokenId>> answers = Answers();
  ASSERT_GE(texts.size(), 10'000u);
  ASSERT_EQ(texts.size(), answers.size());
  int wrong = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::vector<TokenId> ids = tokenizer_->Encode(texts[i], {.add_bos = false});
    if (ids == answers[i] || ++wrong > 10) continue;
    ADD_FAILURE() << "text " << i << " " << testing::PrintToString(texts[i]) << "\n ours   "
                  << testing::PrintToString(ids) << "\n theirs "
                  << testing::PrintToString(answers[i]);
  }
  EXPECT_EQ(wrong, 0);
}

TEST_P(TokenizerGolden, DecodesAsLlamaCpp) {
  GoldenReader hashes(GetParam().golden + std::string(".decoded"));
  for (const std::vector<TokenId>& ids : Answers()) {
    Detokenizer detokenizer(*tokenizer_);
    std::string text;
    for (const TokenId id : ids) {
      const std::string piece = detokenizer.Push(id);
      ASSERT_TRUE(IsValidUtf8(piece)) << testing::PrintToString(ids);
      text += piece;
    }
    text += detokenizer.Flush();
    ASSERT_EQ(Fnv1a(text), hashes.LittleEndian(8))
        << testing::PrintToString(ids) << "\ngave " << text;
  }
}

TEST_P(TokenizerGolden, RendersConversationsAsTheReference) {
  GoldenReader reader(GetParam().golden + std::string(".chats"));
  const uint64_t count = reader.Varint();
  ASSERT_GT(count, 0u);
  for (uint64_t i = 0; i < count; ++i) {
    std::vector<ChatMessage> messages(reader.Varint());
    for (ChatMessage& message : messages) {
      message.role = reader.String();
      message.content = reader.String();
    }
    const absl::StatusOr<std::vector<TokenId>> ids = format_->Render(messages);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, reader.Ids()) << "conversation " << i << " in format " << format_->name();
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TokenizerGolden, testing::Values(kGemma, kSmolLm),
                         [](const auto& info) { return std::string(info.param.golden); });

}  // namespace
}  // namespace facet
