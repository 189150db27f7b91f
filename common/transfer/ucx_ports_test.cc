// A link that is given ports listens on these alone, UCX's own listeners included: what a network
// policy admits is then all that a peer needs.
#include <dirent.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include "common/transfer/ucx_context.h"
#include "common/transfer/ucx_link.h"

namespace trivium::transfer {
namespace {

// Below the range of outgoing ports; what somebody else uses there is passed over.
PortRange Ports(int count) { return {20000 + getpid() % 10000, count}; }

std::set<std::string> SocketsOfThisProcess() {
  std::set<std::string> inodes;
  DIR* descriptors = opendir("/proc/self/fd");
  while (const dirent* entry = readdir(descriptors)) {
    char target[64] = {};
    const std::string path = std::string("/proc/self/fd/") + entry->d_name;
    if (readlink(path.c_str(), target, sizeof(target) - 1) < 0) continue;
    if (std::string(target).rfind("socket:[", 0) == 0) {
      inodes.insert(std::string(target).substr(8, std::string(target).size() - 9));
    }
  }
  closedir(descriptors);
  return inodes;
}

// The IPv4 ports on which this process listens, as the kernel sees it.
std::multiset<int> ListeningPorts() {
  const std::set<std::string> own = SocketsOfThisProcess();
  std::multiset<int> ports;
  std::ifstream table("/proc/self/net/tcp");
  std::string line;
  std::getline(table, line);
  while (std::getline(table, line)) {
    std::istringstream words(line);
    std::string number, local, remote, state, queues, timer, retransmits, user, timeout, inode;
    words >> number >> local >> remote >> state >> queues >> timer >> retransmits >> user >>
        timeout >> inode;
    if (state != "0A" || !own.contains(inode)) continue;
    ports.insert(
        static_cast<int>(std::strtol(local.substr(local.find(':') + 1).c_str(), nullptr, 16)));
  }
  return ports;
}

struct Events final : LinkEvents {
  int messages = 0;
  void OnMessage(Incoming) override { ++messages; }
  void OnReceived(uint64_t, Buffer, bool) override {}
  void OnConnectionLost(Connection) override {}
};

std::unique_ptr<Link> MakeLink(PortRange ports) {
  auto link = MakeUcxLink({.transports = "tcp,self", .interface = "lo", .ports = ports});
  EXPECT_TRUE(link.ok()) << link.status();
  return link.ok() ? *std::move(link) : nullptr;
}

// One message from a new connection of `from` arrives at `to`.
bool Meet(Link& from, Link& to) {
  const auto connection = from.Connect(to.address());
  if (!connection.ok()) return false;
  const uint8_t header[] = {1, 2, 3};
  from.Send(*connection, header, {});
  Events here, there;
  const TimePoint until = Clock::Real().Now() + std::chrono::seconds(20);
  while (there.messages == 0 && Clock::Real().Now() < until) {
    const bool moved = from.Progress(here);
    if (!to.Progress(there) && !moved) to.Wait(std::chrono::milliseconds(1));
  }
  return there.messages == 1;
}

TEST(UcxPortsTest, EveryListenerIsInTheRange) {
  const PortRange ports = Ports(64);
  const std::unique_ptr<Link> a = MakeLink(ports);
  const std::unique_ptr<Link> b = MakeLink(ports);
  ASSERT_TRUE(a != nullptr && b != nullptr);
  ASSERT_TRUE(Meet(*a, *b));
  ASSERT_TRUE(Meet(*b, *a));
  const std::multiset<int> listening = ListeningPorts();
  EXPECT_GE(listening.size(), 4u) << "two doors and at least one listener of UCX on either side";
  for (const int port : listening) {
    EXPECT_GE(port, ports.first);
    EXPECT_LT(port, ports.first + ports.count);
  }
}

TEST(UcxPortsTest, RefusesMorePeersThanPorts) {
  const PortRange ports = Ports(16);
  const std::unique_ptr<Link> link = MakeLink(ports);
  const std::unique_ptr<Link> other = MakeLink({});
  ASSERT_TRUE(link != nullptr && other != nullptr);
  int connected = 0;
  absl::Status refusal;
  while (refusal.ok() && connected < 64) {
    const auto connection = link->Connect(other->address());
    refusal = connection.status();
    if (refusal.ok()) ++connected;
  }
  EXPECT_EQ(connected, 11);
  EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Message(refusal), "transfer: 11 connections");
}

TEST(UcxPortsTest, SaysSoWhenEveryPortIsTaken) {
  const PortRange ports = Ports(1);
  const std::unique_ptr<Link> first = MakeLink({ports.first, 64});
  ASSERT_NE(first, nullptr);
  const std::string door = first->address();
  const int taken = std::atoi(door.substr(door.rfind(':') + 1).c_str());
  const auto second = MakeUcxLink({.interface = "lo", .ports = {taken, 1}});
  EXPECT_EQ(Message(second.status()), "transfer: no port to be had on interface 'lo'");
}

TEST(UcxPortsTest, WithoutItsDeviceUcxIsNotStarted) {
  const auto context = UcxContext::Create({.transports = "tcp,self", .interface = "nowhere"});
  EXPECT_EQ(Message(context.status()),
            "transfer: /sys/class/net/nowhere can't be read, and UCX finds no TCP without it");
}

}  // namespace
}  // namespace trivium::transfer
