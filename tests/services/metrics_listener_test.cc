// The listener of metrics and health over real sockets.

#include "serving/metrics_listener.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <prometheus/counter.h>
#include <prometheus/registry.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"

namespace facet {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A bare TCP client: what the listener says, byte for byte.
class Client {
 public:
  explicit Client(int port) { Connect(port); }
  Client() = default;
  void Connect(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~Client() { close(fd_); }
  void Send(const std::string& text) {
    // A listener that has had enough may close before it took everything.
    send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
  }
  // A request on a connection that stays, and the beginning of its answer.
  std::string Ask() {
    Send("GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n");
    return ReceiveSome();
  }
  bool HasAnswer() {
    char byte;
    return recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
  }
  // Everything until the listener closes the connection.
  std::string ReceiveAll() {
    std::string text;
    char buffer[4096];
    for (ssize_t n; (n = recv(fd_, buffer, sizeof buffer, 0)) > 0;) text.append(buffer, n);
    return text;
  }
  std::string ReceiveSome() {
    char buffer[4096];
    const ssize_t n = recv(fd_, buffer, sizeof buffer, 0);
    return n > 0 ? std::string(buffer, n) : std::string();
  }

 private:
  const int fd_ = socket(AF_INET, SOCK_STREAM, 0);
};

// While it lives, this process can open nothing more than it has.
class NoMoreFiles {
 public:
  NoMoreFiles() {
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &before_), 0);
    const int next = dup(STDERR_FILENO);  // the lowest that is free
    rlimit none = before_;
    none.rlim_cur = static_cast<rlim_t>(next);
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    close(next);
  }
  ~NoMoreFiles() { EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before_), 0); }

 private:
  rlimit before_{};
};

std::string Request(const std::string& line) {
  return line + " HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
}

class MetricsListenerTest : public ::testing::Test {
 protected:
  void Start(const MetricsListenerOptions& options = {.address = "127.0.0.1"}) {
    auto registry = std::make_shared<prometheus::Registry>();
    prometheus::BuildCounter()
        .Name("facet_apples_total")
        .Help("Apples.")
        .Register(*registry)
        .Add({{"colour", "red"}})
        .Increment(3);
    auto listener = MetricsListener::Start(0, registry, options);
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
  }
  std::string Ask(const std::string& line) {
    Client client(listener_->port());
    client.Send(Request(line));
    return client.ReceiveAll();
  }
  std::unique_ptr<MetricsListener> listener_;
};

TEST_F(MetricsListenerTest, ServesTheRegistry) {
  Start();
  EXPECT_THAT(Ask("GET /metrics"),
              AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), HasSubstr("text/plain; version=0.0.4"),
                    HasSubstr("# HELP facet_apples_total Apples.\n"
                              "# TYPE facet_apples_total counter\n"
                              "facet_apples_total{colour=\"red\"} 3\n")));
  EXPECT_THAT(Ask("GET /metrics?name=x"), StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(Ask("GET /healthz"), StartsWith("HTTP/1.1 200 OK\r\n"));
}

TEST_F(MetricsListenerTest, HealthEndsWithTheMovement) {
  std::atomic<int> age_ms = 2000;
  Start({.address = "127.0.0.1", .age = [&] { return std::chrono::milliseconds(age_ms); }});
  EXPECT_THAT(Ask("GET /healthz"), StartsWith("HTTP/1.1 200 OK\r\n"));
  age_ms = 2001;
  EXPECT_THAT(Ask("GET /healthz"),
              AllOf(StartsWith("HTTP/1.1 503 "), HasSubstr("has not moved for 2001 ms\n")));
  EXPECT_THAT(Ask("GET /metrics"), StartsWith("HTTP/1.1 200 OK\r\n"));
}

TEST_F(MetricsListenerTest, HeadSendsTheHeadersOnly) {
  Start();
  const std::string answer = Ask("HEAD /healthz");
  EXPECT_THAT(answer, AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), HasSubstr("Content-Length: 3\r\n")));
  EXPECT_TRUE(answer.ends_with("\r\n\r\n")) << answer;
}

TEST_F(MetricsListenerTest, RefusesWhatItDoesNotKnow) {
  Start();
  EXPECT_THAT(Ask("GET /"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(Ask("GET /metricsx"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(Ask("POST /metrics"),
              AllOf(StartsWith("HTTP/1.1 405 "), HasSubstr("Allow: GET, HEAD\r\n")));
  Client garbage(listener_->port());
  garbage.Send("\x16\x03\x01 not http\r\n\r\n");
  EXPECT_THAT(garbage.ReceiveAll(), StartsWith("HTTP/1.1 400 "));
}

TEST_F(MetricsListenerTest, RefusesHeadersThatAreTooLarge) {
  Start({.address = "127.0.0.1", .header_bytes_max = 512});
  Client client(listener_->port());
  client.Send("GET /metrics HTTP/1.1\r\nX: " + std::string(600, 'x'));
  EXPECT_THAT(client.ReceiveAll(), StartsWith("HTTP/1.1 431 "));
}

TEST_F(MetricsListenerTest, KeepsAConnectionForTheNextRequest) {
  Start();
  Client client(listener_->port());
  EXPECT_THAT(client.Ask(), StartsWith("HTTP/1.1 200 OK\r\n"));
  client.Send(Request("GET /nowhere"));
  EXPECT_THAT(client.ReceiveAll(), StartsWith("HTTP/1.1 404 "));
}

TEST_F(MetricsListenerTest, DropsAnIdleConnection) {
  Start({.address = "127.0.0.1", .idle_timeout = std::chrono::milliseconds(50)});
  Client client(listener_->port());
  client.Send("GET /met");
  EXPECT_EQ(client.ReceiveAll(), "");
}

TEST_F(MetricsListenerTest, ConnectionsBeyondTheLimitWaitTheirTurn) {
  Start({.address = "127.0.0.1", .connections_max = 1});
  auto first = std::make_unique<Client>(listener_->port());
  EXPECT_THAT(first->Ask(), StartsWith("HTTP/1.1 200 OK\r\n"));
  Client second(listener_->port());
  second.Send(Request("GET /healthz"));
  first.reset();
  EXPECT_THAT(second.ReceiveAll(), StartsWith("HTTP/1.1 200 OK\r\n"));
}

TEST_F(MetricsListenerTest, TheLimitHoldsAfterAnAcceptThatFailed) {
  constexpr int kRounds = 10;  // more than one event of the listener's takes to reach it
  Start({.address = "127.0.0.1", .connections_max = 2});
  auto first = std::make_unique<Client>(listener_->port());
  EXPECT_THAT(first->Ask(), StartsWith("HTTP/1.1 200 OK\r\n"));
  Client second, third, fourth;
  {
    const NoMoreFiles none;
    second.Connect(listener_->port());
    for (int i = 0; i < kRounds; ++i) EXPECT_THAT(first->Ask(), StartsWith("HTTP/1.1 200 OK\r\n"));
    first.reset();  // before the listener tries again
    EXPECT_THAT(second.Ask(), StartsWith("HTTP/1.1 200 OK\r\n"));
  }
  // Longer than it takes to try again.
  const auto later = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
  while (std::chrono::steady_clock::now() < later) second.Ask();
  third.Connect(listener_->port());
  EXPECT_THAT(third.Ask(), StartsWith("HTTP/1.1 200 OK\r\n"));
  fourth.Connect(listener_->port());
  fourth.Send(Request("GET /healthz"));
  for (int i = 0; i < kRounds; ++i) EXPECT_THAT(second.Ask(), StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_FALSE(fourth.HasAnswer());
}

TEST_F(MetricsListenerTest, NamesAPortThatIsInUse) {
  Start();
  const auto second = MetricsListener::Start(
      listener_->port(), std::make_shared<prometheus::Registry>(), {.address = "127.0.0.1"});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(MessageOf(second.status()),
            fmt::format("metrics: cannot listen on 127.0.0.1:{}: the port is in use by another "
                        "process",
                        listener_->port()));
}

TEST_F(MetricsListenerTest, StopsWithConnectionsOpen) {
  Start();
  Client idle(listener_->port());
  EXPECT_THAT(idle.Ask(), StartsWith("HTTP/1.1 200 OK\r\n"));
  listener_.reset();
  EXPECT_EQ(idle.ReceiveAll(), "");
}

}  // namespace
}  // namespace facet
