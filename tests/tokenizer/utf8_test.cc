#include "router/tokenizer/utf8.h"

#include <gtest/gtest.h>

namespace facet {
namespace {

TEST(Utf8, TrimsAsPythonDoes) {
  EXPECT_EQ(TrimWhiteSpace(" \t\n\u3000 a \u00a0b\u2003\x1c\n"), "a \u00a0b");
  EXPECT_EQ(TrimWhiteSpace(" \n"), "");
  EXPECT_EQ(TrimWhiteSpace(""), "");
  EXPECT_EQ(TrimWhiteSpace("\u200bx"), "\u200bx");
}

}  // namespace
}  // namespace facet
