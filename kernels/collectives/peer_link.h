#ifndef FACET_KERNELS_COLLECTIVES_PEER_LINK_H_
#define FACET_KERNELS_COLLECTIVES_PEER_LINK_H_

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/collectives/frame.h"
#include "kernels/collectives/unique_fd.h"

namespace facet {

// One connection to a peer: frames out, frames in. Never blocks: every function moves what the
// socket has or takes and returns. Not thread-safe.
class PeerLink {
 public:
  enum class Read {
    kMore,   // not all has come yet
    kReady,  // it is there
    kGone    // and never will be: trouble() says why
  };

  PeerLink() = default;  // of this rank to itself: not to be used
  explicit PeerLink(UniqueFd socket);

  int fd() const { return socket_.get(); }
  bool valid() const { return socket_.valid(); }

  // Begins a frame whose payload is `parts` side by side, which must live until it is sent.
  // REQUIRES: !sending().
  void Send(const CallHeader& call, std::span<const iovec> parts);
  bool sending() const { return first_part_ < parts_.size(); }
  // False: the peer takes nothing any more, and what was not sent is dropped.
  bool Push();
  // The peer has a part of a frame and the rest waits to be sent.
  bool half_sent() const { return half_sent_ && sending(); }

  // Reads as far as the header of the next frame, which then stays until Place().
  Read NextHeader();
  bool holds_header() const { return header_.has_value(); }
  const FrameHeader& header() const { return *header_; }
  // What a failure frame says, its sender's last word. REQUIRES: its header is held; all of it has
  // come, which NextHeader() has waited for.
  absl::Status Failure() const;
  // Where the payload of the frame goes whose header is held. REQUIRES: as many bytes.
  void Place(std::span<std::byte> to);
  // Reads the payload. REQUIRES: it has a place.
  Read Payload();

  // Nothing more comes: the peer has closed, was lost, or sent what is no frame.
  bool gone() const { return !trouble_.empty(); }
  const std::string& trouble() const { return trouble_; }

  // Throws away what has come; the link is good for nothing else after it than to send.
  void Discard();

  // Says why this rank fails, unless the peer lacks a part of the last frame, and sends no more.
  void Close(absl::StatusCode code, std::string_view text);
  bool closed() const { return closed_; }

  // Bytes moved, both ways: grows when anything happens.
  uint64_t moved() const { return moved_; }

 private:
  // False if nothing came; then the socket is empty or gone().
  bool Fill();
  size_t Receive(std::byte* to, size_t size);
  std::span<const std::byte> unread() const {
    return std::span(inbox_).subspan(inbox_begin_, inbox_end_ - inbox_begin_);
  }

  UniqueFd socket_;
  uint64_t moved_ = 0;

  std::array<std::byte, kFrameHeaderBytes> sent_header_;
  std::vector<iovec> parts_;  // the header and the payload; what is sent is cut off
  size_t first_part_ = 0;     // not sent yet
  bool half_sent_ = false;    // the peer has a part of a frame and not all
  bool closed_ = false;

  std::vector<std::byte> inbox_;  // read ahead
  size_t inbox_begin_ = 0;
  size_t inbox_end_ = 0;
  std::optional<FrameHeader> header_;
  std::span<std::byte> to_;  // what is missing of the payload
  std::string trouble_;
};

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_PEER_LINK_H_
