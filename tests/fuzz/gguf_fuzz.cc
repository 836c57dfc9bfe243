// Any bytes as a GGUF file: the parser's promises hold, and nothing that reads a model through
// GgufModel (getters, dequantisation, release) leaves the file's bytes.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "checkpoint/gguf.h"
#include "tests/checkpoint/gguf_soundness.h"

namespace facet {
namespace {

// A file in memory that holds the current input, and its path.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("gguf_fuzz", MFD_CLOEXEC)) {
    FACET_CHECK(descriptor_ >= 0);
    path_ = "/proc/self/fd/" + std::to_string(descriptor_);
  }
  void Write(std::span<const std::byte> bytes) const {
    FACET_CHECK(::ftruncate(descriptor_, 0) == 0);
    FACET_CHECK(::pwrite(descriptor_, bytes.data(), bytes.size(), 0) ==
                static_cast<ssize_t>(bytes.size()));
  }
  const std::string& path() const { return path_; }

 private:
  int descriptor_;
  std::string path_;
};

void ReadMetadata(const GgufModel& model) {
  for (const auto& [key, value] : model.header().metadata) {
    FACET_CHECK(model.Has(key));
    (void)model.GetString(key);
    (void)model.GetInt(key);
    (void)model.GetFloat(key);
    (void)model.GetBool(key);
    (void)model.GetNumbers(key);
    (void)model.GetPerLayer(key, 3);
    const auto strings = model.GetStrings(key);
    FACET_CHECK(!strings.ok() || strings->size() == value.count);
  }
}

void ReadTensors(const GgufModel& model) {
  std::vector<float> row;
  for (const GgufTensor& tensor : model.tensors()) {
    FACET_CHECK(model.FindTensor(tensor.name) == &tensor);
    row.resize(static_cast<size_t>(tensor.shape[0]));
    const int64_t row_bytes = RowBytes(tensor.type, tensor.shape[0]);
    const auto last = tensor.data.last(static_cast<size_t>(row_bytes));
    DequantizeRow(tensor.type, tensor.data.data(), tensor.shape[0], row.data());
    DequantizeRow(tensor.type, last.data(), tensor.shape[0], row.data());
    model.Release(tensor);
  }
  model.ReleaseAll();
}

}  // namespace
}  // namespace facet

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The fuzzer's buffer ends where the input does, a mapping only at the page's end.
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const auto header = facet::ParseGguf(bytes);
  if (!header.ok()) return 0;
  facet::testing::CheckSound(*header, bytes);

  static const facet::MemoryFile file;
  file.Write(bytes);
  const auto model = facet::GgufModel::Open(file.path());
  if (!model.ok()) return 0;  // a part of a split model
  facet::ReadMetadata(*model);
  facet::ReadTensors(*model);
  return 0;
}
