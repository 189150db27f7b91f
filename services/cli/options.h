// The command line of `trivium`. Values, made once in main.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "services/cli/bench_report.h"
#include "services/cli/command_tree.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::cli {

inline constexpr int kBenchRequestsMax = 1000000;

struct BenchOptions {
  std::optional<int> requests;  // unset: the whole trace, or 32
  int concurrency = 4;          // closed loop
  double rate = 0;              // requests/s at random times; 0: not asked for
  std::string trace;            // file of arrivals; empty: none
  int outstanding_max = 256;    // open loop
  double warm_up_s = 0;         // what is due earlier is not measured
  BenchTargets targets;
  int prompt_tokens = 128;
  int max_tokens = 64;
  std::optional<uint64_t> seed;  // unset: drawn anew
  // Random prompts take ids from here; the defaults lie inside every vocabulary of 16384 and more.
  int32_t token_id_min = 256, token_id_max = 16383;

  bool open_loop() const { return rate > 0 || !trace.empty(); }
  int RequestCount() const { return requests.value_or(32); }  // of a run without a trace
};

struct WatchOptions {
  bool on = false;
  double interval_s = 1;
  int count = 0;  // snapshots; 0: until it is interrupted
};

struct CacheOptions {
  std::string action;  // stats, explain, invalidate
  std::string question, category, tenant;
  double older_than_s = 0;
};

struct Options {
  std::string command;  // chat, generate, status, bench, …, as in the command line
  std::string router = "127.0.0.1:7400";
  std::string api_key;  // empty: none
  bool json = false;
  bool quiet = false;  // no line of figures after an answer

  // chat, generate, tokenize
  std::optional<std::string> prompt;  // of chat: the one message
  std::string file;                   // "-": standard input
  std::vector<int32_t> token_ids;
  bool as_chat = false;
  std::string system;
  std::vector<std::string> images;  // of chat: files, before the first message
  std::string model;
  std::optional<int32_t> priority;
  v1::Sampling sampling;
  double timeout_s = 0;  // 0: none; of wait-ready how long to wait

  int prefill_workers = 1, decode_workers = 1;  // wait-ready
  BenchOptions bench;
  WatchOptions watch;  // status
  CacheOptions cache;
  std::string shell;       // completion: bash, zsh, fish
  std::string request_id;  // explain
};

// nullopt: go on; else the exit code, and everything has been said: 0 after --help and --version, 2
// for a command line that is wrong.
std::optional<int> ParseOptions(int argc, const char* const* argv, Options* options);

// All that ParseOptions understands.
CommandInfo DescribeCommands();

}  // namespace trivium::cli
