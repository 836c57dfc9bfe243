#include "serving/grpc_status.h"

#include <string>
#include <utility>

#include "base/status.h"

namespace facet {
namespace {

// gRPC percent-encodes every byte outside printable ASCII, so its messages can hold UTF-8; a client
// in a stricter language refuses what is not. ASCII needs no check at all.
std::string PrintableOrQuestionMarks(std::string message) {
  bool ascii = true;
  for (const char c : message) ascii = ascii && static_cast<unsigned char>(c) < 0x80;
  if (ascii) return message;
  size_t i = 0;
  while (i < message.size()) {
    const auto lead = static_cast<unsigned char>(message[i]);
    const size_t length = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    bool valid = lead < 0x80 || (lead >= 0xc2 && lead <= 0xf4 && i + length <= message.size());
    for (size_t k = 1; valid && k < length; ++k) {
      valid = (static_cast<unsigned char>(message[i + k]) & 0xc0) == 0x80;
    }
    if (!valid) message[i] = '?';
    i += valid ? length : 1;
  }
  return message;
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      PrintableOrQuestionMarks(MessageOf(status)));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return MakeStatus(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace facet
