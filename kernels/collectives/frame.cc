#include "kernels/collectives/frame.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint64_t kHelloMagic = 0x6f6c6c65'68746366;    // "fcthello"
constexpr uint64_t kWelcomeMagic = 0x6d6f6369'68746366;  // "fcthicom"
constexpr uint32_t kFrameMagic = 0x66746366;             // "fctf"
constexpr uint32_t kVersion = 1;
constexpr uint32_t kStatusCodeMax = 16;  // of those that gRPC knows, too

struct HelloBytes {
  uint64_t magic;
  uint32_t version;
  int32_t rank;
  int32_t to;
  int32_t world;
  TcpNonce nonce;
};
static_assert(sizeof(HelloBytes) == kHelloBytes);

struct WelcomeBytes {
  uint64_t magic;
  TcpNonce nonce;
};
static_assert(sizeof(WelcomeBytes) == kWelcomeBytes);

struct FrameBytes {
  uint32_t magic;
  uint32_t bytes;
  CallHeader call;
};
static_assert(sizeof(FrameBytes) == kFrameHeaderBytes);

template <typename Struct>
std::array<std::byte, sizeof(Struct)> ToBytes(const Struct& value) {
  return std::bit_cast<std::array<std::byte, sizeof(Struct)>>(value);
}

template <typename Struct>
Struct FromBytes(std::span<const std::byte, sizeof(Struct)> bytes) {
  Struct value;
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

bool IsOperation(uint32_t operation) {
  return operation >= static_cast<uint32_t>(Operation::kAllReduce) &&
         operation <= static_cast<uint32_t>(Operation::kExchanges);
}

}  // namespace

bool SameNonce(const TcpNonce& a, const TcpNonce& b) {
  std::byte difference{0};
  for (size_t i = 0; i < a.size(); ++i) difference |= a[i] ^ b[i];
  return difference == std::byte{0};
}

std::array<std::byte, kHelloBytes> EncodeHello(const TcpHello& hello) {
  return ToBytes(HelloBytes{kHelloMagic, kVersion, hello.rank, hello.to, hello.world, hello.nonce});
}

absl::StatusOr<TcpHello> ParseHello(std::span<const std::byte, kHelloBytes> bytes) {
  const HelloBytes hello = FromBytes<HelloBytes>(bytes);
  if (hello.magic != kHelloMagic) return InvalidArgument("no hello");
  if (hello.version != kVersion) {
    return InvalidArgument("a hello of version {}, this program has {}", hello.version, kVersion);
  }
  // The higher rank calls the lower one.
  if (hello.world < 2 || hello.world > kMaxRanks || hello.to < 0 || hello.rank <= hello.to ||
      hello.rank >= hello.world) {
    return InvalidArgument("a hello of rank {} to rank {} of {}", hello.rank, hello.to,
                           hello.world);
  }
  return TcpHello{hello.rank, hello.to, hello.world, hello.nonce};
}

std::array<std::byte, kWelcomeBytes> EncodeWelcome(const TcpNonce& nonce) {
  return ToBytes(WelcomeBytes{kWelcomeMagic, nonce});
}

absl::StatusOr<TcpNonce> ParseWelcome(std::span<const std::byte, kWelcomeBytes> bytes) {
  const WelcomeBytes welcome = FromBytes<WelcomeBytes>(bytes);
  if (welcome.magic != kWelcomeMagic) return InvalidArgument("no welcome");
  return welcome.nonce;
}

std::array<std::byte, kFrameHeaderBytes> EncodeFrameHeader(const FrameHeader& header) {
  return ToBytes(FrameBytes{kFrameMagic, header.bytes, header.call});
}

absl::StatusOr<FrameHeader> ParseFrameHeader(std::span<const std::byte, kFrameHeaderBytes> bytes) {
  const FrameBytes frame = FromBytes<FrameBytes>(bytes);
  if (frame.magic != kFrameMagic) return InvalidArgument("no frame (magic {:#x})", frame.magic);
  const FrameHeader header = {frame.call, frame.bytes};
  if (!header.is_failure()) {
    if (IsOperation(frame.call.operation)) return header;
    return InvalidArgument("a frame of operation {}", frame.call.operation);
  }
  // The code lies in the field of the layout.
  if (frame.bytes > kFailureTextBytesMax || frame.call.layout == 0 ||
      frame.call.layout > kStatusCodeMax) {
    return InvalidArgument("a failure of code {} in {} bytes", frame.call.layout, frame.bytes);
  }
  return header;
}

std::string EncodeFailure(absl::StatusCode code, std::string_view text) {
  FACET_CHECK(code != absl::StatusCode::kOk);
  text = text.substr(0, kFailureTextBytesMax);
  FrameHeader header;
  header.call.operation = kFailureFrame;
  header.call.layout = std::min(static_cast<uint32_t>(code), kStatusCodeMax);
  header.bytes = static_cast<uint32_t>(text.size());
  const auto bytes = EncodeFrameHeader(header);
  std::string frame(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return frame.append(text);
}

absl::Status FailureOf(const FrameHeader& header, std::string_view payload) {
  FACET_CHECK(header.is_failure() && payload.size() == header.bytes);
  return MakeStatus(static_cast<absl::StatusCode>(header.call.layout), payload);
}

}  // namespace facet
