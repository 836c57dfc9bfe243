// Any bytes from whoever holds the other end of a connection: as a hello, as a welcome, as frames
// for a rank in the middle of its calls. What is let through is well formed, every call ends, and
// what has failed stays failed.

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/frame.h"
#include "kernels/collectives/tcp_communicator.h"
#include "kernels/sum_tree.h"

namespace facet {
namespace {

constexpr size_t kInputMax = 32 << 10;  // fits the buffer of a fresh socket
constexpr int64_t kElements = 5;

template <size_t kBytes, typename Check>
void WithFirst(std::span<const std::byte> bytes, const Check& check) {
  if (bytes.size() >= kBytes) check(bytes.first<kBytes>());
}

// Whatever is accepted says the same when it is written again.
void CheckParsers(std::span<const std::byte> bytes) {
  WithFirst<kHelloBytes>(bytes, [](auto first) {
    const auto hello = ParseHello(first);
    if (!hello.ok()) return;
    FACET_CHECK(0 <= hello->to && hello->to < hello->rank && hello->rank < hello->world);
    FACET_CHECK(hello->world <= kMaxRanks && std::ranges::equal(EncodeHello(*hello), first));
  });
  WithFirst<kWelcomeBytes>(bytes, [](auto first) {
    const auto nonce = ParseWelcome(first);
    FACET_CHECK(!nonce.ok() || std::ranges::equal(EncodeWelcome(*nonce), first));
  });
  WithFirst<kFrameHeaderBytes>(bytes, [](auto first) {
    const auto header = ParseFrameHeader(first);
    FACET_CHECK(!header.ok() || std::ranges::equal(EncodeFrameHeader(*header), first));
  });
}

absl::Status CallNumber(int number, Communicator& comm) {
  switch (number % 4) {
    case 0:
      return comm.Barrier();
    case 1: {
      const SumTree tree(2, {0, 1, 2});
      const std::vector<float> roots(kElements, 1);
      std::vector<float> out(kElements);
      return comm.AllReduceSum(tree, roots.data(), kElements, out.data());
    }
    case 2: {
      std::vector<std::vector<std::byte>> out;
      return comm.AllGatherBytes(std::vector<std::byte>(3), &out);
    }
    default: {
      std::vector<std::byte> message;
      return comm.Broadcast(&message);
    }
  }
}

// The bytes are all that rank 0 ever says to rank 1.
void CheckCalls(std::span<const std::byte> bytes, int first_call) {
  int ends[2];
  FACET_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
  UniqueFd peer(ends[0]);
  std::vector<UniqueFd> sockets(2);
  sockets[0] = UniqueFd(ends[1]);
  FACET_CHECK(send(peer.get(), bytes.data(), bytes.size(), 0) ==
              static_cast<ssize_t>(bytes.size()));
  peer = UniqueFd();
  TcpCommunicator comm(1, std::move(sockets), kTcpBufferBytesMin, {.message_bytes_max = 1 << 20});
  for (int call = first_call;; ++call) {
    const absl::Status status = CallNumber(call, comm);
    if (status.ok()) continue;  // it used some of the bytes up
    FACET_CHECK(CallNumber(call + 1, comm) == status);
    return;
  }
}

}  // namespace
}  // namespace facet

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0 || size > facet::kInputMax) return 0;
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(1);
  facet::CheckParsers(bytes);
  facet::CheckCalls(bytes, data[0]);
  return 0;
}
