#include "common/transfer/peer_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sstream>
#include <thread>

extern char** environ;

namespace trivium::transfer {
namespace {

std::string ToHex(const std::string& bytes) {
  std::string hex;
  for (const char c : bytes) hex += fmt::format("{:02x}", static_cast<uint8_t>(c));
  return hex;
}

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PeerProcess>> PeerProcess::Start(
    const std::string& path, const std::vector<std::string>& args) {
  int in[2], out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) {
    return Unavailable("no pipes to be had");
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
  std::vector<std::string> words = {path};
  words.insert(words.end(), args.begin(), args.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::unique_ptr<PeerProcess> process(new PeerProcess);
  const int error =
      posix_spawn(&process->pid_, path.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(in[0]);
  close(out[1]);
  process->to_child_ = in[1];
  process->from_child_ = out[0];
  if (error != 0) {
    process->pid_ = -1;
    return Unavailable("{} can't be run: error {}", path, error);
  }
  return process;
}

PeerProcess::~PeerProcess() {
  if (to_child_ >= 0) close(to_child_);
  if (from_child_ >= 0) close(from_child_);
  if (pid_ <= 0) return;
  // It ends by itself when its input does, and then leaves no shared memory behind.
  kill(pid_, SIGCONT);
  const TimePoint until = Clock::Real().Now() + std::chrono::seconds(5);
  while (Clock::Real().Now() < until) {
    if (waitpid(pid_, nullptr, WNOHANG) != 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void PeerProcess::Say(const std::string& line) {
  const std::string bytes = line + "\n";
  size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t n = write(to_child_, bytes.data() + written, bytes.size() - written);
    if (n <= 0) return;  // Hear() will tell
    written += static_cast<size_t>(n);
  }
}

absl::StatusOr<std::string> PeerProcess::Hear(Duration limit) {
  const TimePoint until = Clock::Real().Now() + limit;
  while (true) {
    if (const size_t end = heard_.find('\n'); end != std::string::npos) {
      std::string line = heard_.substr(0, end);
      heard_.erase(0, end + 1);
      return line;
    }
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(until - Clock::Real().Now()).count();
    pollfd descriptor{from_child_, POLLIN, 0};
    if (left <= 0 || poll(&descriptor, 1, static_cast<int>(left)) <= 0) {
      return Unavailable("the peer says nothing");
    }
    char bytes[4096];
    const ssize_t n = read(from_child_, bytes, sizeof(bytes));
    if (n <= 0) return Unavailable("the peer has ended");
    heard_.append(bytes, static_cast<size_t>(n));
  }
}

absl::StatusOr<std::string> PeerProcess::Ask(const std::string& line) {
  Say(line);
  return Hear();
}

void PeerProcess::Signal(int signal) const { kill(pid_, signal); }

bool PeerProcess::Alive() {
  if (pid_ <= 0) return false;
  if (waitpid(pid_, nullptr, WNOHANG) == 0) return true;
  pid_ = -1;
  return false;
}

Credentials PeerCredentials(uint64_t seed) {
  Credentials credentials{RequestId{fmt::format("peer-{}", seed)}, Attempt{1}, {}};
  credentials.secret.fill(static_cast<uint8_t>(seed));
  return credentials;
}

std::string TicketToWord(const Ticket& ticket) {
  return fmt::format("{}:{}:{}:{}:{}:{}:{}:{}:{}", ToHex(ticket.address), ticket.epoch.value,
                     ticket.landing_id, ticket.generation, ticket.layers, ticket.token_begin,
                     ticket.token_end, ticket.row_elems, ticket.block_tokens);
}

absl::StatusOr<Ticket> TicketFromWord(const std::string& word) {
  std::istringstream in(word);
  std::string address;
  std::getline(in, address, ':');
  Ticket ticket;
  ticket.address = FromHex(address);
  char colon = 0;
  in >> ticket.epoch.value >> colon >> ticket.landing_id >> colon >> ticket.generation >> colon >>
      ticket.layers >> colon >> ticket.token_begin >> colon >> ticket.token_end >> colon >>
      ticket.row_elems >> colon >> ticket.block_tokens;
  if (in.fail()) return InvalidArgument("not a ticket: {}", word);
  return ticket;
}

}  // namespace trivium::transfer
