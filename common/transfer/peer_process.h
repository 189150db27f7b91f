// The other side of a transfer as a process of its own: runs transfer_peer, speaks with it in
// lines. Thread-safety: none; the test's thread owns it. The child dies with the object.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/transfer/transport.h"

namespace trivium::transfer {

class PeerProcess {
 public:
  // UNAVAILABLE when the program at `path` can't be run.
  static absl::StatusOr<std::unique_ptr<PeerProcess>> Start(const std::string& path,
                                                            const std::vector<std::string>& args);
  ~PeerProcess();
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  void Say(const std::string& line);
  // The next line; UNAVAILABLE when the child has ended or says nothing for `limit`.
  absl::StatusOr<std::string> Hear(Duration limit = std::chrono::seconds(30));
  // Say, then Hear.
  absl::StatusOr<std::string> Ask(const std::string& line);
  void Signal(int signal) const;
  bool Alive();

 private:
  PeerProcess() = default;
  pid_t pid_ = -1;
  int to_child_ = -1, from_child_ = -1;
  std::string heard_;
};

// What transfer_peer expects and shows for a seed.
Credentials PeerCredentials(uint64_t seed);

// A ticket as one word, and back.
std::string TicketToWord(const Ticket& ticket);
absl::StatusOr<Ticket> TicketFromWord(const std::string& word);

}  // namespace trivium::transfer
