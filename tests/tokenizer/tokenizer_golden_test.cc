// The tokenizers of the two models that Facet is tested with, against llama.cpp's ids for 12,000
// texts (tests/golden/tokenizer/make_golden.py).

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
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

constexpr char kGolden[] = "tests/golden/tokenizer/";

struct Case {
  const char* model;
  const char* answers;
};
const Case kGemma{"gemma-3-270m-q4_k_m.gguf", "gemma3.ids"};
const Case kSmolLm{"SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2.ids"};

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  FACET_CHECK(file.good(), "{} cannot be read", path);
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

class VarintReader {
 public:
  explicit VarintReader(std::string data) : data_(std::move(data)) {}
  size_t Next() {
    size_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<uint8_t>(data_.at(at_++));
      value |= size_t{byte & 127u} << shift;
      if (byte < 128) return value;
    }
  }
  std::string Bytes(size_t count) {
    FACET_CHECK(count <= data_.size() - at_);
    at_ += count;
    return data_.substr(at_ - count, count);
  }

 private:
  std::string data_;
  size_t at_ = 0;
};

std::vector<std::string> Texts() {
  VarintReader reader(ReadFile(std::string(kGolden) + "texts.bin"));
  std::vector<std::string> texts(reader.Next());
  for (std::string& text : texts) text = reader.Bytes(reader.Next());
  return texts;
}

std::vector<std::vector<TokenId>> Answers(const std::string& name) {
  VarintReader reader(ReadFile(kGolden + name));
  std::vector<std::vector<TokenId>> answers(reader.Next());
  for (std::vector<TokenId>& ids : answers) {
    ids.resize(reader.Next());
    for (TokenId& id : ids) id = static_cast<TokenId>(reader.Next());
  }
  return answers;
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
    format_name_ = format->name();
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::string format_name_;
};

TEST_P(TokenizerGolden, EncodesAsLlamaCpp) {
  const std::vector<std::string> texts = Texts();
  const std::vector<std::vector<TokenId>> answers = Answers(GetParam().answers);
  ASSERT_GE(texts.size(), 10'000u);
  ASSERT_EQ(texts.size(), answers.size());
  int wrong = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::vector<TokenId> ids = tokenizer_->Encode(texts[i], {.add_bos = false});
    if (ids == answers[i]) continue;
    if (++wrong <= 10) {
      ADD_FAILURE() << "text " << i << " '" << testing::PrintToString(texts[i]) << "'\n ours   "
                    << testing::PrintToString(ids) << "\n theirs "
                    << testing::PrintToString(answers[i]);
    }
  }
  EXPECT_EQ(wrong, 0);
}

TEST_P(TokenizerGolden, DecodesWhatItEncoded) {
  for (const std::string& text : Texts()) {
    if (!IsValidUtf8(text)) continue;
    Detokenizer detokenizer(*tokenizer_);
    std::string decoded;
    for (const TokenId id : tokenizer_->Encode(text)) {
      const std::string piece = detokenizer.Push(id);
      ASSERT_TRUE(IsValidUtf8(piece));
      decoded += piece;
    }
    decoded += detokenizer.Flush();
    ASSERT_EQ(decoded, text);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TokenizerGolden, testing::Values(kGemma, kSmolLm),
                         [](const auto& info) {
                           return std::string(info.param.answers).substr(0, 5) == "gemma"
                                      ? "Gemma3"
                                      : "SmolLm2";
                         });

}  // namespace
}  // namespace facet
