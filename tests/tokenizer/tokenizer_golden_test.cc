// The tokenizers of the two models that Facet is tested with, against llama.cpp's ids for 12,000
// texts (tests/golden/tokenizer/make_golden.py).

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "base/check.h"
#include "checkpoint/gguf.h"
#include "router/tokenizer/chat_format.h"
#include "router/tokenizer/detokenizer.h"
#include "router/tokenizer/tokenizer.h"
#include "router/tokenizer/utf8.h"

namespace facet {
namespace {

struct Case {
  const char* model;
  const char* golden;  // the answers' name in tests/golden/tokenizer
};
const Case kGemma{"gemma-3-270m-q4_k_m.gguf", "gemma3"};
const Case kSmolLm{"SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"};

// Reads a golden file's varints and strings, as make_golden.py writes them.
class GoldenReader {
 public:
  explicit GoldenReader(const std::string& name) {
    const std::string path = "tests/golden/tokenizer/" + name;
    std::ifstream file(path, std::ios::binary);
    FACET_CHECK(file.good(), "{} cannot be read", path);
    std::stringstream content;
    content << file.rdbuf();
    data_ = content.str();
  }

  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<uint8_t>(data_.at(at_++));
      value |= uint64_t{byte & 127u} << shift;
      if (byte < 128) return value;
    }
  }
  std::string Bytes(size_t count) {
    FACET_CHECK(count <= data_.size() - at_);
    at_ += count;
    return data_.substr(at_ - count, count);
  }
  std::string String() { return Bytes(Varint()); }
  std::vector<TokenId> Ids() {
    std::vector<TokenId> ids(Varint());
    for (TokenId& id : ids) id = static_cast<TokenId>(Varint());
    return ids;
  }
  uint64_t Hash() {
    uint64_t hash = 0;
    const std::string bytes = Bytes(8);
    for (int i = 7; i >= 0; --i) hash = hash << 8 | static_cast<uint8_t>(bytes[i]);
    return hash;
  }

 private:
  std::string data_;
  size_t at_ = 0;
};

std::vector<std::string> Texts() {
  GoldenReader reader("texts.bin");
  std::vector<std::string> texts(reader.Varint());
  for (std::string& text : texts) text = reader.String();
  return texts;
}

uint64_t Fnv1a(const std::string& text) {
  uint64_t hash = 0xCBF29CE484222325ull;
  for (const char byte : text) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001B3ull;
  return hash;
}

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
  const std::vector<std::string> texts = Texts();
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
    ASSERT_EQ(Fnv1a(text), hashes.Hash()) << testing::PrintToString(ids) << "\ngave " << text;
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
