#ifndef FACET_KERNELS_COLLECTIVES_FRAME_H_
#define FACET_KERNELS_COLLECTIVES_FRAME_H_

// The bytes that ranks say to each other over TCP, little-endian as all hosts that Facet runs on.
// Whoever connects may send anything: parsing never trusts a field.
//
//   hello    (40 bytes, from who connects)  magic, version, rank, to, world, the caller's nonce
//   welcome  (24 bytes, the answer)         magic, the host's nonce
//   frame    (32 bytes and a payload)       magic, payload bytes, call header
//
// A frame whose operation is kFailureFrame says why its sender has failed; it is the last one.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/collectives/call.h"

namespace facet {

// 128 bits that an epoch's ranks learn from their leader and nobody else does.
using TcpNonce = std::array<std::byte, 16>;

// Each end of a connection proves with its own that it belongs to the epoch: who is called by a
// stranger, or calls one, gives nothing away that would let the stranger in.
struct TcpKey {
  TcpNonce caller = {};
  TcpNonce host = {};
};

bool SameNonce(const TcpNonce& a, const TcpNonce& b);  // in a time that tells nothing

struct TcpHello {
  int32_t rank = 0;  // who calls
  int32_t to = 0;    // whom it means to call
  int32_t world = 0;
  TcpNonce nonce = {};
};

inline constexpr size_t kHelloBytes = 40;
inline constexpr size_t kWelcomeBytes = 24;
inline constexpr size_t kFrameHeaderBytes = 32;
inline constexpr size_t kFailureTextBytesMax = 480;
inline constexpr uint32_t kFailureFrame = 0xffff;

std::array<std::byte, kHelloBytes> EncodeHello(const TcpHello& hello);
// InvalidArgument: not a hello of this version, or of impossible ranks.
absl::StatusOr<TcpHello> ParseHello(std::span<const std::byte, kHelloBytes> bytes);

std::array<std::byte, kWelcomeBytes> EncodeWelcome(const TcpNonce& nonce);
absl::StatusOr<TcpNonce> ParseWelcome(std::span<const std::byte, kWelcomeBytes> bytes);

struct FrameHeader {
  CallHeader call;
  uint32_t bytes = 0;  // of the payload that follows

  bool is_failure() const { return call.operation == kFailureFrame; }
};

std::array<std::byte, kFrameHeaderBytes> EncodeFrameHeader(const FrameHeader& header);
// InvalidArgument: not a frame, an operation that is none, a failure that is none.
absl::StatusOr<FrameHeader> ParseFrameHeader(std::span<const std::byte, kFrameHeaderBytes> bytes);

// A whole failure frame. The text is cut to kFailureTextBytesMax.
std::string EncodeFailure(absl::StatusCode code, std::string_view text);
// What it says. REQUIRES: a parsed header that is_failure(), and its payload.
absl::Status FailureOf(const FrameHeader& header, std::string_view payload);

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_FRAME_H_
