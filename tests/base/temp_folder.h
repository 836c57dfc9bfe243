#ifndef FACET_TESTS_BASE_TEMP_FOLDER_H_
#define FACET_TESTS_BASE_TEMP_FOLDER_H_

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/check.h"

namespace facet::testing {

// A new empty folder, gone with its contents when the object goes.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "facet_XXXXXX").string();
    FACET_CHECK(::mkdtemp(pattern.data()) != nullptr, "{}", pattern);
    path_ = pattern;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string File(std::string_view name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_BASE_TEMP_FOLDER_H_
