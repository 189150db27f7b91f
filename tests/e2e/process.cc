#include "tests/e2e/process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <random>
#include <sstream>
#include <thread>
#include <utility>

#include "common/base/status.h"

namespace trivium::e2e {
namespace {

// Only async-signal-safe calls: the parent may run threads.
[[noreturn]] void ExecChild(char** argv, char** envp, int log) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  execve(argv[0], argv, envp);
  _exit(127);
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (const std::string& s : strings) out.push_back(const_cast<char*>(s.c_str()));
  out.push_back(nullptr);
  return out;
}

}  // namespace

Process::Process(const std::vector<std::string>& argv, const std::string& log_path,
                 const std::vector<std::string>& environment)
    : log_path_(log_path) {
  std::vector<std::string> merged = environment;
  for (char** e = environ; *e != nullptr; ++e) merged.emplace_back(*e);
  const std::vector<char*> args = Pointers(argv), env = Pointers(merged);
  const int log = open(log_path.c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
  TRIVIUM_CHECK(log >= 0, "cannot write {}", log_path);
  pid_ = fork();
  if (pid_ == 0) ExecChild(const_cast<char**>(args.data()), const_cast<char**>(env.data()), log);
  close(log);
}

Process::Process(Process&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), log_path_(std::move(other.log_path_)) {}

Process& Process::operator=(Process&& other) noexcept {
  if (this != &other) {
    Destroy();
    pid_ = std::exchange(other.pid_, -1);
    log_path_ = std::move(other.log_path_);
  }
  return *this;
}

Process::~Process() { Destroy(); }

void Process::Destroy() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void Process::Signal(int signal) const {
  if (pid_ > 0) kill(pid_, signal);
}

int Process::Wait(Duration timeout) {
  const TimePoint deadline = Clock::Real().Now() + timeout;
  int status = 0;
  while (pid_ > 0 && waitpid(pid_, &status, WNOHANG) == 0) {
    if (Clock::Real().Now() > deadline) return -1;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  pid_ = -1;
  return status;
}

bool Process::Running() { return pid_ > 0 && Wait(Duration(0)) == -1; }

int64_t Process::ResidentBytes() const {
  std::ifstream statm("/proc/" + std::to_string(pid_) + "/statm");
  int64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

namespace {

// Binds for an instant: false where somebody listens.
bool IsFree(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool is_free = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  close(fd);
  return is_free;
}

// Binds an abstract address named after the port, which stays taken until this process ends,
// however it ends: so no two tests, nor one test twice, are given the same port.
bool Reserve(int port) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = "trivium-test-port-" + std::to_string(port);
  name.copy(address.sun_path + 1, sizeof(address.sun_path) - 1);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0) return true;
  close(fd);
  return false;
}

}  // namespace

int FreePort() {
  static std::mt19937 random(std::random_device{}());
  for (int tries = 0; tries < 1000; ++tries) {
    const int port = 15000 + static_cast<int>(random() % 15000);
    if (Reserve(port) && IsFree(port)) return port;
  }
  TRIVIUM_CHECK(false, "no free port");
  return -1;
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream(path) << content;
}

}  // namespace trivium::e2e
