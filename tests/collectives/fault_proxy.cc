#include "tests/collectives/fault_proxy.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

constexpr int kPollMs = 5;

}  // namespace

FaultProxy::FaultProxy(std::string target) : target_(std::move(target)) {
  auto listener = TcpListener::Bind("127.0.0.1:0");
  FACET_CHECK(listener.ok(), "{}", MessageOf(listener.status()));
  listener_ = std::make_unique<TcpListener>(*std::move(listener));
  FACET_CHECK(listener_->Listen(16).ok());
  address_ = fmt::format("127.0.0.1:{}", listener_->port());
  thread_ = std::thread([this] { Run(); });
}

FaultProxy::~FaultProxy() {
  stop_ = true;
  thread_.join();
}

void FaultProxy::Run() {
  while (!stop_) {
    std::vector<pollfd> polled = {{listener_->fd(), POLLIN, 0}};
    for (const Pipe& pipe : pipes_) {
      for (const UniqueFd& end : pipe.ends) polled.push_back({end.get(), POLLIN, 0});
    }
    if (stalled_) polled.clear();
    poll(polled.data(), polled.size(), kPollMs);
    if (cut_) pipes_.clear();
    if (stalled_) continue;
    if (polled[0].revents != 0) Accept();
    std::erase_if(pipes_, [this](Pipe& pipe) { return !Move(&pipe); });
  }
}

// Who cannot be connected to is refused, as if he had been called himself.
void FaultProxy::Accept() {
  UniqueFd from(accept4(listener_->fd(), nullptr, nullptr, SOCK_CLOEXEC));
  const auto address = ResolveAddress(target_);
  FACET_CHECK(address.ok());
  UniqueFd to(socket(address->family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!from.valid() || connect(to.get(), address->get(), address->length) != 0) return;
  PrepareConnection(from.get(), std::chrono::seconds(60)).IgnoreError();
  PrepareConnection(to.get(), std::chrono::seconds(60)).IgnoreError();
  Pipe& pipe = pipes_.emplace_back();
  pipe.ends[0] = std::move(from);
  pipe.ends[1] = std::move(to);
}

bool FaultProxy::Move(Pipe* pipe) {
  bool open = true;
  bool moved = false;
  for (int side = 0; side < 2; ++side) {
    std::vector<std::byte>& held = pipe->held[side];
    if (held.empty()) {
      held.resize(chunk_);
      const ssize_t got = recv(pipe->ends[side].get(), held.data(), held.size(), MSG_DONTWAIT);
      open = open && (got > 0 || (got < 0 && errno == EAGAIN));
      held.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
      if (got > 0 && delay_us_ > 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(delay_us_));
      }
    }
    if (held.empty()) continue;
    const ssize_t sent =
        send(pipe->ends[1 - side].get(), held.data(), held.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return false;
    if (sent > 0) {
      held.erase(held.begin(), held.begin() + sent);
      bytes_ += static_cast<size_t>(sent);
      moved = true;
    }
  }
  if (moved && chunk_ < (size_t{64} << 10)) {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return open || moved;
}

}  // namespace facet
