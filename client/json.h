#ifndef FACET_CLIENT_JSON_H_
#define FACET_CLIENT_JSON_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace facet {

// Writes JSON on one line; the calls follow the document's order. Numbers are the shortest that
// read back the same; one that is not finite becomes null, as JSON has no other word for it.
class JsonWriter {
 public:
  JsonWriter& BeginObject() { return Open('{'); }
  JsonWriter& EndObject() { return Close('}'); }
  JsonWriter& BeginArray() { return Open('['); }
  JsonWriter& EndArray() { return Close(']'); }
  JsonWriter& Key(std::string_view key);
  JsonWriter& String(std::string_view value);
  JsonWriter& Integer(int64_t value);
  JsonWriter& Number(double value);
  JsonWriter& Number(float value);
  JsonWriter& Bool(bool value);
  const std::string& text() const { return text_; }

 private:
  JsonWriter& Open(char bracket);
  JsonWriter& Close(char bracket);
  JsonWriter& Value(std::string_view text);
  void Separate();

  std::string text_;
};

}  // namespace facet

#endif  // FACET_CLIENT_JSON_H_
