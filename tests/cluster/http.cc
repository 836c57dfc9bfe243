#include "tests/cluster/http.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdlib>

namespace facet::testing {
namespace {

constexpr std::string_view kScheme = "http://127.0.0.1:";
constexpr size_t kBodyBytesMax = 4 << 20;

// A socket that is connected to the port of this host, or -1.
int Connect(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval patience{.tv_sec = 60};  // more than a machine stands still
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return fd;
  close(fd);
  return -1;
}

std::string Exchange(int fd, std::string_view request) {
  if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) < 0) return "";
  std::string answer;
  char buffer[16384];
  for (ssize_t got;
       answer.size() < kBodyBytesMax && (got = recv(fd, buffer, sizeof buffer, 0)) > 0;) {
    answer.append(buffer, static_cast<size_t>(got));
  }
  return answer;
}

}  // namespace

std::string HttpGet(std::string_view url) {
  if (!url.starts_with(kScheme)) return "";
  url.remove_prefix(kScheme.size());
  const size_t slash = url.find('/');
  const int fd = Connect(std::atoi(std::string(url.substr(0, slash)).c_str()));
  if (fd < 0) return "";
  const std::string answer =
      Exchange(fd, fmt::format("GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                               url.substr(slash)));
  close(fd);
  const size_t body = answer.find("\r\n\r\n");
  if (!answer.starts_with("HTTP/1.1 200") || body == std::string::npos) return "";
  return answer.substr(body + 4);
}

double SumOfMetric(std::string_view page, std::string_view metric, std::string_view labels) {
  double sum = 0;
  while (!page.empty()) {
    const size_t end = std::min(page.find('\n'), page.size() - 1);
    const std::string_view line = page.substr(0, end);
    page.remove_prefix(end + 1);
    if (!line.starts_with(metric) || line.size() == metric.size()) continue;
    const char after = line[metric.size()];
    if (after != ' ' && after != '{') continue;
    if (line.find(labels) == std::string_view::npos) continue;
    sum += std::atof(std::string(line.substr(line.rfind(' ') + 1)).c_str());
  }
  return sum;
}

}  // namespace facet::testing
