// The router's health service, asked as probes and clients do.

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/services/router_fixture.h"

namespace facet::testing {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

HealthCheckRequest Of(const std::string& service) {
  HealthCheckRequest request;
  request.set_service(service);
  return request;
}

// One stream of Watch; cancelled when it goes.
class Watching {
 public:
  Watching(Health::Stub& stub, const std::string& service)
      : reader_(stub.Watch(&context_, Of(service))) {}
  ~Watching() {
    if (reader_ == nullptr) return;
    context_.TryCancel();
    Finish();
  }

  // What it hears next; -1: nothing any more.
  int Next() {
    HealthCheckResponse response;
    return reader_->Read(&response) ? static_cast<int>(response.status()) : -1;
  }
  grpc::Status Finish() { return std::exchange(reader_, nullptr)->Finish(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<HealthCheckResponse>> reader_;
};

class RouterHealth : public RouterFixture {
 protected:
  void SetUp() override {
    options_.health.watches_max = 2;
    AddLeader(Saying({kA}));
    Start();
    health_ = Health::NewStub(channel_);
  }

  std::unique_ptr<Health::Stub> health_;
};

TEST_F(RouterHealth, AServiceNobodyHasHeardOfIsNotFound) {
  grpc::ClientContext context;
  HealthCheckResponse response;
  EXPECT_EQ(health_->Check(&context, Of("facet.v1.Nothing"), &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
  Watching watching(*health_, "facet.v1.Nothing");
  EXPECT_EQ(watching.Next(), HealthCheckResponse::SERVICE_UNKNOWN);
}

TEST_F(RouterHealth, WatchesHearOfEveryChange) {
  Watching inference(*health_, "facet.v1.Inference");
  Watching whole(*health_, "");
  EXPECT_EQ(inference.Next(), HealthCheckResponse::SERVING);
  EXPECT_EQ(whole.Next(), HealthCheckResponse::SERVING);
  leaders_[0]->Kill();
  EXPECT_EQ(inference.Next(), HealthCheckResponse::NOT_SERVING);
  leaders_[0]->Start();
  EXPECT_EQ(inference.Next(), HealthCheckResponse::SERVING);
}

TEST_F(RouterHealth, TooManyWatchesAreRefusedUntilOneHasGone) {
  Watching first(*health_, "");
  auto second = std::make_unique<Watching>(*health_, "");
  EXPECT_EQ(first.Next(), HealthCheckResponse::SERVING);
  EXPECT_EQ(second->Next(), HealthCheckResponse::SERVING);
  const auto refused = [this] {
    Watching third(*health_, "");
    if (third.Next() == HealthCheckResponse::SERVING) return false;
    EXPECT_EQ(third.Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    return true;
  };
  EXPECT_TRUE(refused());
  second.reset();
  while (refused()) std::this_thread::yield();
}

// They end on two threads: the acceptor's, which refuses, and the core's, which hears that it is
// done.
TEST_F(RouterHealth, RefusedWatchesEndOnce) {
  Watching first(*health_, "");
  Watching second(*health_, "");
  EXPECT_EQ(first.Next(), HealthCheckResponse::SERVING);
  EXPECT_EQ(second.Next(), HealthCheckResponse::SERVING);
  std::vector<std::thread> clients;
  for (int client = 0; client < 8; ++client) {
    clients.emplace_back([this] {
      for (int i = 0; i < 100; ++i) {
        Watching refused(*health_, "");
        EXPECT_EQ(refused.Next(), -1);
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

TEST_F(RouterHealth, ADrainWaitsForNoWatchAndTellsIt) {
  Watching inference(*health_, "facet.v1.Inference");
  EXPECT_EQ(inference.Next(), HealthCheckResponse::SERVING);
  std::thread drain([this] { router_->Drain(std::chrono::hours(1)); });
  EXPECT_EQ(inference.Next(), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(inference.Next(), -1);  // the server has gone
  drain.join();
}

}  // namespace
}  // namespace facet::testing
