#include "serving/metrics_listener.h"

#include <fmt/format.h>
#include <prometheus/text_serializer.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <functional>
#include <optional>
#include <thread>
#include <utility>

#include "base/status.h"

namespace facet {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kBodyBytesMax = 1024;  // no request of ours has a body
constexpr std::chrono::milliseconds kAcceptPause{100};

using Response = http::response<http::string_body>;

struct Answer {
  http::status status;
  std::string content_type;
  std::string body;
};

Answer Health(const MetricsListenerOptions& options) {
  const std::chrono::milliseconds age = options.age ? options.age() : std::chrono::milliseconds(0);
  if (age <= options.stuck_after) return {http::status::ok, "text/plain", "ok\n"};
  return {http::status::service_unavailable, "text/plain",
          fmt::format("has not moved for {} ms\n", age.count())};
}

Answer Respond(http::verb method, std::string_view target, prometheus::Registry& registry,
               const MetricsListenerOptions& options) {
  const std::string_view path = target.substr(0, target.find('?'));
  if (path != "/metrics" && path != "/healthz") {
    return {http::status::not_found, "text/plain", "not found; try /metrics or /healthz\n"};
  }
  if (method != http::verb::get && method != http::verb::head) {
    return {http::status::method_not_allowed, "text/plain", "only GET and HEAD\n"};
  }
  if (path == "/healthz") return Health(options);
  return {http::status::ok, "text/plain; version=0.0.4; charset=utf-8",
          prometheus::TextSerializer().Serialize(registry.Collect())};
}

// The peer spoke, but not HTTP.
bool IsParseError(error_code error) {
  return error.category() == http::make_error_code(http::error::bad_target).category() &&
         error != http::error::end_of_stream && error != http::error::partial_message;
}

// One connection. It lives as long as an operation of its stream is pending; `on_close` runs in
// its destructor.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(tcp::socket socket, const MetricsListenerOptions& options, prometheus::Registry& registry,
          std::function<void()> on_close)
      : stream_(std::move(socket)),
        buffer_(static_cast<size_t>(options.header_bytes_max) + kBodyBytesMax),
        options_(options),
        registry_(registry),
        on_close_(std::move(on_close)) {}
  ~Session() { on_close_(); }

  void Read() {
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(options_.header_bytes_max));
    parser_->body_limit(kBodyBytesMax);
    stream_.expires_after(options_.idle_timeout);
    http::async_read(
        stream_, buffer_, *parser_,
        [self = shared_from_this()](error_code error, size_t) { self->OnRead(error); });
  }

 private:
  void OnRead(error_code error) {
    if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      return Write(http::status::request_header_fields_too_large, "headers too large\n");
    }
    if (error == http::error::body_limit) {
      return Write(http::status::payload_too_large, "no body expected\n");
    }
    if (IsParseError(error)) return Write(http::status::bad_request, "not HTTP\n");
    if (error) return;  // gone or idle for too long
    const auto& request = parser_->get();
    const std::string_view target(request.target().data(), request.target().size());
    Answer answer = Respond(request.method(), target, registry_, options_);
    Write(std::move(answer), request.keep_alive(), request.method() == http::verb::head);
  }

  void Write(http::status status, std::string body) {
    Write({status, "text/plain", std::move(body)}, /*keep_alive=*/false, /*head=*/false);
  }

  void Write(Answer answer, bool keep_alive, bool head) {
    response_ = Response(answer.status, 11);
    response_.set(http::field::content_type, answer.content_type);
    if (answer.status == http::status::method_not_allowed) {
      response_.set(http::field::allow, "GET, HEAD");
    }
    response_.keep_alive(keep_alive);
    response_.body() = std::move(answer.body);
    response_.prepare_payload();
    if (head) response_.body().clear();  // the length stays
    stream_.expires_after(options_.idle_timeout);
    http::async_write(stream_, response_,
                      [self = shared_from_this(), keep_alive](error_code error, size_t) {
                        self->OnWritten(error, keep_alive);
                      });
  }

  void OnWritten(error_code error, bool keep_alive) {
    if (error) return;
    if (keep_alive) return Read();
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
  }

  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  const MetricsListenerOptions& options_;
  prometheus::Registry& registry_;
  std::function<void()> on_close_;
  std::optional<http::request_parser<http::string_body>> parser_;
  Response response_;
};

}  // namespace

// Everything runs on the thread of io_. Its destructor drops the pending operations and with them
// the sessions, which refer to the members above it: they come before io_.
class MetricsListener::Impl {
 public:
  Impl(std::shared_ptr<prometheus::Registry> registry, const MetricsListenerOptions& options)
      : registry_(std::move(registry)), options_(options) {}
  ~Impl() {
    io_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen(int port) {
    error_code error;
    const asio::ip::address address = asio::ip::make_address(options_.address, error);
    if (error || port < 0 || port > 65535) {
      return InvalidArgument("metrics: {}:{} is not an IP address and port", options_.address,
                             port);
    }
    const tcp::endpoint endpoint(address, static_cast<uint16_t>(port));
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(tcp::acceptor::max_listen_connections, error);
    if (!error) port_ = acceptor_.local_endpoint(error).port();
    if (error) {
      return FailedPrecondition("metrics: cannot listen on {}:{}: {}", options_.address, port,
                                error == asio::error::address_in_use
                                    ? "the port is in use by another process"
                                    : error.message());
    }
    Accept();
    thread_ = std::thread([this] { io_.run(); });
    return absl::OkStatus();
  }

  int port() const { return port_; }

 private:
  void Accept() {
    if (connections_ >= options_.connections_max) return;  // OnClose() resumes
    accepting_ = true;
    acceptor_.async_accept([this](error_code error, tcp::socket socket) {
      accepting_ = false;
      if (error) return AcceptLater();
      ++connections_;
      std::make_shared<Session>(std::move(socket), options_, *registry_, [this] {
        OnClose();
      })->Read();
      Accept();
    });
  }

  // Out of file descriptors, say: a retry at once would spin.
  void AcceptLater() {
    pause_.expires_after(kAcceptPause);
    pause_.async_wait([this](error_code error) {
      if (!error) ResumeAccepting();  // OnClose() may have been first
    });
  }

  void OnClose() {
    --connections_;
    if (!accepting_ && !io_.stopped()) asio::post(io_, [this] { ResumeAccepting(); });
  }

  void ResumeAccepting() {
    if (!accepting_) Accept();
  }

  std::shared_ptr<prometheus::Registry> registry_;
  const MetricsListenerOptions options_;
  int port_ = 0;
  int connections_ = 0;
  bool accepting_ = false;
  asio::io_context io_{1};
  tcp::acceptor acceptor_{io_};
  asio::steady_timer pause_{io_};
  std::thread thread_;
};

MetricsListener::MetricsListener(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MetricsListener::~MetricsListener() = default;

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(
    int port, std::shared_ptr<prometheus::Registry> registry,
    const MetricsListenerOptions& options) {
  auto impl = std::make_unique<Impl>(std::move(registry), options);
  FACET_RETURN_IF_ERROR(impl->Listen(port));
  return std::unique_ptr<MetricsListener>(new MetricsListener(std::move(impl)));
}

int MetricsListener::port() const { return impl_->port(); }

}  // namespace facet
