#include "client/json.h"

#include <fmt/format.h>

#include <cmath>

namespace facet {
namespace {

std::string Quoted(std::string_view value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      text += '\\';
      text += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      text += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    } else {
      text += c;
    }
  }
  return text += '"';
}

}  // namespace

void JsonWriter::Separate() {
  if (text_.empty()) return;
  const char last = text_.back();
  if (last != '{' && last != '[' && last != ':') text_ += ',';
}

JsonWriter& JsonWriter::Open(char bracket) {
  Separate();
  text_ += bracket;
  return *this;
}

JsonWriter& JsonWriter::Close(char bracket) {
  text_ += bracket;
  return *this;
}

JsonWriter& JsonWriter::Value(std::string_view text) {
  Separate();
  text_ += text;
  return *this;
}

JsonWriter& JsonWriter::Key(std::string_view key) {
  Value(Quoted(key));
  text_ += ':';
  return *this;
}

JsonWriter& JsonWriter::String(std::string_view value) { return Value(Quoted(value)); }
JsonWriter& JsonWriter::Integer(int64_t value) { return Value(fmt::format("{}", value)); }
JsonWriter& JsonWriter::Bool(bool value) { return Value(value ? "true" : "false"); }
JsonWriter& JsonWriter::Number(double value) {
  return Value(std::isfinite(value) ? fmt::format("{}", value) : "null");
}
JsonWriter& JsonWriter::Number(float value) {
  return Value(std::isfinite(value) ? fmt::format("{}", value) : "null");
}

}  // namespace facet
