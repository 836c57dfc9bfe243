#ifndef FACET_CLIENT_TABLE_H_
#define FACET_CLIENT_TABLE_H_

#include <string>
#include <vector>

namespace facet {

// Text in columns. The first column and those named in `left` are aligned left, others right.
class Table {
 public:
  explicit Table(std::vector<std::string> header, std::vector<size_t> left = {});
  // REQUIRES: as many cells as the header has.
  void AddRow(std::vector<std::string> cells);
  std::string Render() const;

 private:
  std::vector<std::vector<std::string>> rows_;  // the header first
  std::vector<size_t> left_;
};

}  // namespace facet

#endif  // FACET_CLIENT_TABLE_H_
