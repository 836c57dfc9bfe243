#include "tests/collectives/group_harness.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/local.h"
#include "kernels/collectives/shm.h"

namespace facet {
namespace {

// More than a machine stands still: nothing ends by it unless a test sets a shorter time.
constexpr std::chrono::seconds kLong(120);

absl::Status WorkOn(absl::StatusOr<std::unique_ptr<Communicator>> comm, const RankWork& work) {
  if (!comm.ok()) return comm.status();
  (*comm)->SetTimeout(kLong);
  return work(**comm);
}

absl::StatusOr<std::unique_ptr<Communicator>> Join(const std::string& name, int rank, int world,
                                                   const ShmOptions& options) {
  return rank == 0 ? CreateShmGroup(name, world, options)
                   : AttachShmGroup(name, rank, world, options);
}

// In the child. The status goes through the pipe as its code and its message.
[[noreturn]] void RunChild(int pipe, int rank, const std::function<absl::Status(int)>& body) {
  const absl::Status status = body(rank);
  const std::string text = std::string(1, static_cast<char>(status.code())) + MessageOf(status);
  FACET_CHECK(write(pipe, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  _exit(0);  // no handlers of the test binary
}

struct Child {
  pid_t pid;
  int pipe;
};

absl::Status ReadStatus(const Child& child) {
  std::string text;
  char buffer[4096];
  for (ssize_t bytes; (bytes = read(child.pipe, buffer, sizeof(buffer))) > 0;) {
    text.append(buffer, static_cast<size_t>(bytes));
  }
  close(child.pipe);
  int exit_status = 0;
  while (waitpid(child.pid, &exit_status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(exit_status) || WEXITSTATUS(exit_status) != 0 || text.empty()) {
    return MakeStatus(absl::StatusCode::kUnknown, fmt::format("wait status {:#x}", exit_status));
  }
  return MakeStatus(static_cast<absl::StatusCode>(text[0]), text.substr(1));
}

}  // namespace

std::string UniqueGroupName() {
  static std::atomic<int> count{0};
  return fmt::format("test-{}-{}", getpid(), count++);
}

std::vector<absl::Status> RunRanks(
    std::vector<MakeCommunicator> ranks,
    const std::function<absl::Status(std::unique_ptr<Communicator>)>& body) {
  std::vector<absl::Status> statuses(ranks.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    threads.emplace_back([&, rank] {
      auto comm = ranks[rank]();
      if (comm.ok()) (*comm)->SetTimeout(kLong);
      statuses[rank] = comm.ok() ? body(*std::move(comm)) : comm.status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

std::vector<MakeCommunicator> TakeLocalGroup(int world, const ArenaOptions& options) {
  const auto group =
      std::make_shared<std::vector<std::unique_ptr<Communicator>>>(MakeLocalGroup(world, options));
  std::vector<MakeCommunicator> ranks;
  for (int rank = 0; rank < world; ++rank) {
    ranks.emplace_back([group, rank] { return std::move((*group)[static_cast<size_t>(rank)]); });
  }
  return ranks;
}

std::vector<absl::Status> RunThreads(int world, const RankWork& work, const ArenaOptions& options) {
  return RunRanks(TakeLocalGroup(world, options),
                  [&](std::unique_ptr<Communicator> comm) { return work(*comm); });
}

std::vector<absl::Status> RunChildren(int world, const std::function<absl::Status(int)>& body) {
  std::vector<Child> children;
  for (int rank = 0; rank < world; ++rank) {
    int ends[2];
    FACET_CHECK(pipe(ends) == 0);
    const pid_t pid = fork();
    FACET_CHECK(pid >= 0);
    if (pid == 0) RunChild(ends[1], rank, body);
    close(ends[1]);
    children.push_back({pid, ends[0]});
  }
  std::vector<absl::Status> statuses;
  for (const Child& child : children) statuses.push_back(ReadStatus(child));
  return statuses;
}

std::vector<absl::Status> RunProcesses(int world, const RankWork& work,
                                       const ArenaOptions& options) {
  const std::string name = UniqueGroupName();
  const ShmOptions shm_options = {.arena = options, .nonce = 7, .attach_timeout = kLong};
  return RunChildren(world,
                     [&](int rank) { return WorkOn(Join(name, rank, world, shm_options), work); });
}

TcpPorts TakeTcpPorts(int world) {
  TcpPorts ports;
  ports.group.world = world;
  ports.group.key.caller.fill(std::byte{0x11});
  ports.group.key.host.fill(std::byte{0x22});
  for (int rank = 0; rank < world; ++rank) {
    auto listener = TcpListener::Bind("127.0.0.1:0");
    FACET_CHECK(listener.ok(), "{}", MessageOf(listener.status()));
    ports.group.addresses.push_back(fmt::format("127.0.0.1:{}", listener->port()));
    ports.listeners.push_back(*std::move(listener));
  }
  return ports;
}

namespace {

// A slow host, eight ranks on two processors, and a sanitizer are no lost link.
TcpOptions OptionsFrom(const ArenaOptions& arena) {
  TcpOptions options;
  options.mesh.lost_link = kLong;
  options.exchange.spin = arena.spin;
  options.exchange.message_bytes_max = arena.message_bytes_max;
  options.buffer_bytes = std::max<size_t>(arena.slot_bytes, size_t{64} << 10);
  options.attach_timeout = kLong;
  return options;
}

absl::StatusOr<std::unique_ptr<Communicator>> JoinTcp(TcpPorts* ports, int rank,
                                                      const ArenaOptions& options) {
  TcpGroup group = ports->group;
  group.rank = rank;
  return JoinTcpGroup(std::move(ports->listeners[static_cast<size_t>(rank)]), group,
                      OptionsFrom(options));
}

}  // namespace

std::vector<MakeCommunicator> TakeTcpGroup(int world, const ArenaOptions& options) {
  const auto ports = std::make_shared<TcpPorts>(TakeTcpPorts(world));
  std::vector<MakeCommunicator> ranks;
  for (int rank = 0; rank < world; ++rank) {
    ranks.emplace_back([ports, rank, options] { return JoinTcp(ports.get(), rank, options); });
  }
  return ranks;
}

std::vector<absl::Status> RunTcpThreads(int world, const RankWork& work,
                                        const ArenaOptions& options) {
  return RunRanks(TakeTcpGroup(world, options),
                  [&](std::unique_ptr<Communicator> comm) { return work(*comm); });
}

std::vector<absl::Status> RunTcpProcesses(int world, const RankWork& work,
                                          const ArenaOptions& options) {
  TcpPorts ports = TakeTcpPorts(world);
  return RunChildren(world, [&](int rank) { return WorkOn(JoinTcp(&ports, rank, options), work); });
}

}  // namespace facet
