// A child process of a test: started with its output in a file, signalled and reaped by pid.
// Thread-safety: one thread. A Process that goes out of scope is killed and reaped.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "common/base/clock.h"

namespace trivium::e2e {

class Process {
 public:
  Process() = default;
  // Output of both streams is appended to `log_path`; `environment` is added to the test's own.
  Process(const std::vector<std::string>& argv, const std::string& log_path,
          const std::vector<std::string>& environment = {});
  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  ~Process();

  void Signal(int signal) const;
  // Exit status as of waitpid, or -1 when it is still running after `timeout`.
  int Wait(Duration timeout);
  bool Running();
  pid_t pid() const { return pid_; }
  int64_t ResidentBytes() const;
  const std::string& log_path() const { return log_path_; }

 private:
  void Destroy();
  pid_t pid_ = -1;
  std::string log_path_;
};

// A TCP port of the loopback interface that was free a moment ago and that no other test is given while
// this process lives. Below the range of outgoing ports: a client that keeps trying a dead server's port
// would sooner or later take it by connecting to itself.
int FreePort();
std::string ReadFile(const std::string& path);
void WriteFile(const std::string& path, const std::string& content);

}  // namespace trivium::e2e
