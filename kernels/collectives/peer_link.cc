#include "kernels/collectives/peer_link.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

// What is read ahead of a payload's place: a small frame comes with one call.
constexpr size_t kInboxBytes = 32 << 10;
static_assert(kInboxBytes >= kFrameHeaderBytes + kFailureTextBytesMax);
constexpr size_t kPartsPerCall = 64;

}  // namespace

PeerLink::PeerLink(UniqueFd socket) : socket_(std::move(socket)), inbox_(kInboxBytes) {}

void PeerLink::Send(const CallHeader& call, std::span<const iovec> parts) {
  FACET_CHECK(!sending());
  FrameHeader header = {call, 0};
  parts_.clear();
  parts_.push_back({sent_header_.data(), sent_header_.size()});
  for (const iovec& part : parts) {
    if (part.iov_len == 0) continue;
    header.bytes += static_cast<uint32_t>(part.iov_len);
    parts_.push_back(part);
  }
  sent_header_ = EncodeFrameHeader(header);
  first_part_ = 0;
  half_sent_ = false;
}

bool PeerLink::Push() {
  while (sending()) {
    msghdr message = {};
    message.msg_iov = parts_.data() + first_part_;
    message.msg_iovlen = std::min(parts_.size() - first_part_, kPartsPerCall);
    const ssize_t bytes = sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
    if (bytes < 0) {
      if (errno == EAGAIN || errno == EINTR) return true;
      half_sent_ = true;
      parts_.clear();
      first_part_ = 0;
      return false;
    }
    moved_ += static_cast<uint64_t>(bytes);
    size_t left = static_cast<size_t>(bytes);
    while (sending() && left >= parts_[first_part_].iov_len) left -= parts_[first_part_++].iov_len;
    half_sent_ = sending();
    if (!half_sent_) return true;
    iovec& part = parts_[first_part_];
    part.iov_base = static_cast<std::byte*>(part.iov_base) + left;
    part.iov_len -= left;
  }
  return true;
}

size_t PeerLink::Receive(std::byte* to, size_t size) {
  if (gone()) return 0;
  const ssize_t bytes = recv(socket_.get(), to, size, 0);
  if (bytes > 0) {
    moved_ += static_cast<uint64_t>(bytes);
    return static_cast<size_t>(bytes);
  }
  if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
  if (bytes == 0 || errno == ECONNRESET) {  // the latter if it had not read everything
    trouble_ = "it closed the connection";
  } else {
    trouble_ = errno == ETIMEDOUT ? "its host does not answer" : std::strerror(errno);
  }
  return 0;
}

bool PeerLink::Fill() {
  if (inbox_begin_ > 0) {
    const std::span<const std::byte> rest = unread();
    std::memmove(inbox_.data(), rest.data(), rest.size());
    inbox_begin_ = 0;
    inbox_end_ = rest.size();
  }
  const size_t bytes = Receive(inbox_.data() + inbox_end_, inbox_.size() - inbox_end_);
  inbox_end_ += bytes;
  return bytes > 0;
}

PeerLink::Read PeerLink::NextHeader() {
  while (!header_) {
    if (unread().size() < kFrameHeaderBytes) {
      if (Fill()) continue;
      return gone() ? Read::kGone : Read::kMore;
    }
    absl::StatusOr<FrameHeader> header = ParseFrameHeader(unread().first<kFrameHeaderBytes>());
    if (!header.ok()) {
      trouble_ = "it sent " + MessageOf(header.status());
      return Read::kGone;
    }
    header_ = *header;
    inbox_begin_ += kFrameHeaderBytes;
  }
  while (header_->is_failure() && unread().size() < header_->bytes) {
    if (!Fill()) return gone() ? Read::kGone : Read::kMore;
  }
  return Read::kReady;
}

absl::Status PeerLink::Failure() const {
  const std::span<const std::byte> text = unread().first(header_->bytes);
  return FailureOf(*header_, {reinterpret_cast<const char*>(text.data()), text.size()});
}

void PeerLink::Place(std::span<std::byte> to) {
  FACET_CHECK(header_ && to.size() == header_->bytes && !header_->is_failure());
  header_.reset();
  to_ = to;
}

PeerLink::Read PeerLink::Payload() {
  const size_t ahead = std::min(to_.size(), unread().size());
  if (ahead > 0) {
    std::memcpy(to_.data(), unread().data(), ahead);
    inbox_begin_ += ahead;
    to_ = to_.subspan(ahead);
  }
  while (!to_.empty()) {
    const size_t bytes = Receive(to_.data(), to_.size());
    if (bytes == 0) return gone() ? Read::kGone : Read::kMore;
    to_ = to_.subspan(bytes);
  }
  return Read::kReady;
}

void PeerLink::Discard() {
  inbox_begin_ = inbox_end_ = 0;
  while (Fill()) inbox_end_ = 0;
}

void PeerLink::Close(absl::StatusCode code, std::string_view text) {
  parts_.clear();
  first_part_ = 0;
  if (!half_sent_) {
    const std::string frame = EncodeFailure(code, text);
    // Best effort: if the socket takes only a part, the peer hears of the end alone.
    static_cast<void>(send(socket_.get(), frame.data(), frame.size(), MSG_NOSIGNAL));
  }
  shutdown(socket_.get(), SHUT_WR);
  closed_ = true;
}

}  // namespace facet
