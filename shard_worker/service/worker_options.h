#ifndef FACET_SHARD_WORKER_SERVICE_WORKER_OPTIONS_H_
#define FACET_SHARD_WORKER_SERVICE_WORKER_OPTIONS_H_

#include <chrono>
#include <string>

#include "serving/grpc_server.h"
#include "shard_worker/runtime/rank.h"
#include "shard_worker/service/collective.h"
#include "shard_worker/service/engine_loop.h"
#include "shard_worker/service/group_link.h"
#include "shard_worker/service/leader_service.h"

namespace facet {

// All that a worker process can be told.
struct WorkerOptions {
  RankOptions rank;
  // Of rank 0:
  GrpcServerOptions server;
  SessionOptions session;
  std::string model_name;  // what requests call the model
  bool allow_logits_digest = false;
  int routers_max = 64;
  // Outstanding at a time; 1: the next is planned after the last; 0: as the rank would have it.
  int steps_max = 0;
  SpeculationOptions speculation;
  std::chrono::microseconds news_period{0};  // as LeaderCoreOptions'
  std::chrono::microseconds news_period_max{0};
  std::chrono::milliseconds join{300000};   // for the other ranks to come at first, ...
  std::chrono::milliseconds rejoin{30000};  // ... and after an epoch that broke
  CanaryOptions canary;
  BeatOptions beat;
  // Of the other ranks:
  GroupLinkOptions link;
  // Of all:
  CollectiveOptions collective;
  std::chrono::milliseconds drain{30000};  // for running sequences after SIGTERM
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_WORKER_OPTIONS_H_
