#include "tests/golden/golden.h"

#include <fstream>
#include <iterator>
#include <sstream>

#include "base/check.h"

namespace facet::golden {
namespace {

const std::string kFolder = "tests/golden/";

struct Line {
  std::string keyword;  // "#" before a comment
  std::string rest;
};

std::vector<Line> ReadLines(const std::string& path) {
  std::ifstream file(path);
  FACET_CHECK(file, "{}: cannot be read; tests run in the source directory", path);
  std::vector<Line> lines;
  for (std::string text; std::getline(file, text);) {
    const size_t space = text.find(' ');
    FACET_CHECK(space != std::string::npos, "{}: a line without a value: {}", path, text);
    lines.push_back({text.substr(0, space), text.substr(space + 1)});
  }
  return lines;
}

template <typename T>
std::vector<T> Numbers(const Line& line) {
  std::istringstream in(line.rest);
  std::vector<T> values{std::istream_iterator<T>(in), std::istream_iterator<T>()};
  FACET_CHECK(in.eof() && !values.empty(), "{}: not a list of numbers", line.keyword);
  return values;
}

}  // namespace

std::vector<Answer> ReadAnswers(const std::string& name) {
  std::vector<Answer> answers;
  std::string comment;
  for (const Line& line : ReadLines(kFolder + name + ".answers")) {
    if (line.keyword == "#") {
      comment = line.rest;
    } else if (line.keyword == "prompt") {
      answers.push_back({.name = comment, .prompt = Numbers<int32_t>(line)});
    } else if (line.keyword == "answer") {
      answers.back().ids = Numbers<int32_t>(line);
    } else {
      FACET_CHECK(line.keyword == "logprobs", "{}", line.keyword);
      answers.back().log_probabilities = Numbers<double>(line);
    }
  }
  return answers;
}

TextLikelihood ReadText(const std::string& name) {
  TextLikelihood text;
  for (const Line& line : ReadLines(kFolder + name + ".text")) {
    if (line.keyword == "text") {
      text.ids = Numbers<int32_t>(line);
    } else if (line.keyword == "logprobs") {
      text.log_probabilities = Numbers<double>(line);
    } else if (line.keyword == "perplexity") {
      text.perplexity = Numbers<double>(line).front();
    } else {
      FACET_CHECK(line.keyword == "#", "{}", line.keyword);
    }
  }
  return text;
}

}  // namespace facet::golden
