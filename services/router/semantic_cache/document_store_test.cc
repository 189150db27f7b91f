// The same promises of every store, and what a file or a server may do to them. Redis is a real
// server, where one is installed.
#include "services/router/semantic_cache/document_store.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "services/router/semantic_cache/cache_fixture.h"

extern char** environ;

namespace trivium::router {
namespace {

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  TRIVIUM_CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0, "no free port");
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  return ntohs(address.sin_port);
}

class RedisServer {
 public:
  explicit RedisServer(int port) : port_(std::to_string(port)) { Start(); }
  ~RedisServer() { Stop(); }

  void Start() {
    const char* arguments[] = {"redis-server", "--port", port_.c_str(), "--bind",  "127.0.0.1",
                               "--save",       "",       "--loglevel",  "warning", nullptr};
    is_there_ = posix_spawnp(&pid_, arguments[0], nullptr, nullptr, const_cast<char**>(arguments),
                             environ) == 0;
  }
  void Stop() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  bool is_there() const { return is_there_; }
  std::string address() const { return "127.0.0.1:" + port_; }

 private:
  const std::string port_;
  pid_t pid_ = 0;
  bool is_there_ = false;
};

// Until `call` is OK, at most 10 s.
template <typename Fn>
absl::Status Await(const Fn& call) {
  absl::Status status = call();
  for (int i = 0; i < 1000 && !status.ok(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    status = call();
  }
  return status;
}

void ExpectAStore(DocumentStore& store) {
  std::string cursor;
  EXPECT_TRUE(store.After(&cursor)->empty());
  const std::string odd("a\0b\xff", 4);
  for (int i = 0; i < 300; ++i) {
    const std::string key = fmt::format("key{:03}", i);
    ASSERT_TRUE(store.Put({key, odd + key}, key + odd, 60000).ok());
  }
  EXPECT_EQ(*store.Answer("key007"), "key007" + odd);
  EXPECT_EQ(store.Answer("none").status().code(), absl::StatusCode::kNotFound);
  const std::vector<std::string> gone{"key001", "key299", "none"};
  EXPECT_TRUE(store.Delete(gone).ok());
  EXPECT_EQ(store.Answer("key001").status().code(), absl::StatusCode::kNotFound);
  const auto first = store.After(&cursor), second = store.After(&cursor);
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_EQ(first->size(), DocumentStore::kPageMax);
  ASSERT_EQ(second->size(), 298 - DocumentStore::kPageMax);
  EXPECT_EQ((*first)[0].key, "key000");
  EXPECT_EQ((*first)[1].key, "key002");
  EXPECT_EQ((*first)[0].entry, odd + "key000");
  EXPECT_TRUE(store.After(&cursor)->empty());
  ASSERT_TRUE(store.Put({"late", "x"}, "y", 60000).ok());
  EXPECT_EQ(store.After(&cursor)->size(), 1u);
}

struct SqliteStoreTest : testing::Test {
  ~SqliteStoreTest() override { std::filesystem::remove_all(folder); }
  const std::string folder = [] {
    const std::string made = fmt::format("{}document_store_{}", testing::TempDir(), getpid());
    std::filesystem::create_directory(made);
    return made;
  }();
  const std::string path = folder + "/answers.db";
};

TEST_F(SqliteStoreTest, IsAStoreAndKeepsWhatItHas) {
  ExpectAStore(**OpenSqliteStore(":memory:"));
  ExpectAStore(**OpenSqliteStore(path));
  struct stat status {};
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  const auto again = OpenSqliteStore(path);
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE((*again)->Answer("key298").ok());
  EXPECT_FALSE(OpenSqliteStore(folder + "/none/answers.db").ok());
}

TEST_F(SqliteStoreTest, ADamagedFileIsPutAsideAndMadeAnew) {
  ExpectAStore(**OpenSqliteStore(path));
  const auto size = std::filesystem::file_size(path);
  ASSERT_GT(size, 20000u);
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(4200)
      << std::string(12000, '\xa5');
  const auto flipped = OpenSqliteStore(path);
  ASSERT_TRUE(flipped.ok()) << Message(flipped.status());
  std::string cursor;
  EXPECT_TRUE((*flipped)->After(&cursor)->empty());
  EXPECT_TRUE(std::filesystem::exists(path + ".damaged"));
  std::ofstream(path, std::ios::trunc) << "this is no database, whatever its name says";
  std::filesystem::remove(path + "-wal");
  const auto anew = OpenSqliteStore(path);
  ASSERT_TRUE(anew.ok()) << Message(anew.status());
  EXPECT_TRUE((*anew)->Put({"k", "e"}, "a", 1).ok());
}

struct RedisStoreTest : CacheFixture {
  void SetUp() override {
    if (!server.is_there()) GTEST_SKIP() << "redis-server is not installed";
    const auto probe = Connect("probe");
    std::string cursor;
    const absl::Status up = Await([&] { return probe->After(&cursor).status(); });
    ASSERT_TRUE(up.ok()) << Message(up);
  }
  // A loaded machine takes its time.
  std::unique_ptr<DocumentStore> Connect(const std::string& prefix) const {
    return MakeRedisStore(server.address(), prefix, std::chrono::seconds(10));
  }
  RedisServer server{FreePort()};
};

TEST_F(RedisStoreTest, IsAStore) {
  const auto redis = Connect("t");
  EXPECT_TRUE(redis->is_shared());
  ExpectAStore(*redis);
  std::string cursor;
  EXPECT_TRUE(Connect("u")->After(&cursor)->empty());
}

TEST_F(RedisStoreTest, TwoRoutersSeeEachOthersAnswers) {
  const auto one = Connect("t"), two = Connect("t");
  SemanticCache first(OptionsOf(100), one.get()), second(OptionsOf(100), two.get());
  const std::vector<float> asked = RandomUnit(random), other = RandomUnit(random);
  ASSERT_TRUE(first.Insert(Question(), kChat, asked, "first's", 1).ok());
  ASSERT_TRUE(second.Insert(Question(), kChat, other, "second's", 1).ok());
  EXPECT_FALSE(Hits(second, Question(), kChat, asked, "first's"));
  ASSERT_TRUE(first.Follow().ok() && second.Follow().ok());
  EXPECT_TRUE(Hits(second, Question(), kChat, asked, "first's"));
  EXPECT_TRUE(Hits(first, Question(), kChat, other, "second's"));
  EXPECT_EQ(first.counts()[kChat].entries, 2u);
  EXPECT_EQ(*first.Invalidate({.tenant = "alice"}), 2u);
  EXPECT_FALSE(Hits(second, Question(), kChat, asked, "first's"));
}

TEST_F(RedisStoreTest, OfTwoAnswersToOneQuestionBothRoutersKeepTheSame) {
  const auto one = Connect("t"), two = Connect("t");
  SemanticCache first(OptionsOf(100), one.get()), second(OptionsOf(100), two.get());
  const CacheQuestion question = Question();
  const std::vector<float> asked = RandomUnit(random);
  ASSERT_TRUE(first.Insert(question, kChat, asked, "first's", 1).ok());
  ASSERT_TRUE(second.Insert(question, kChat, asked, "second's", 1).ok());
  for (SemanticCache* cache : {&first, &second, &first, &second}) {
    ASSERT_TRUE(cache->Follow().ok());
    while (cache->Upkeep()) {
    }
  }
  const auto found = first.FindExact(question, kChat);
  ASSERT_TRUE(found.has_value());
  const auto answer = first.Answer(*found);
  ASSERT_TRUE(answer.ok()) << Message(answer.status());
  EXPECT_TRUE(Hits(second, question, kChat, asked, *answer));
}

TEST_F(RedisStoreTest, AServerThatBeganAnewIsReadFromTheBeginning) {
  const auto writer = Connect("t"), reader = Connect("t");
  std::string cursor;
  for (int i = 0; i < 5; ++i)
    ASSERT_TRUE(writer->Put({fmt::format("k{}", i), "e"}, "a", 60000).ok());
  ASSERT_EQ(reader->After(&cursor)->size(), 5u);
  server.Stop();
  server.Start();  // it keeps nothing on disk
  ASSERT_TRUE(Await([&] { return writer->Put({"new", "e"}, "a", 60000); }).ok());
  std::vector<StoredEntry> page;
  ASSERT_TRUE(Await([&]() -> absl::Status {
                ASSIGN_OR_RETURN(page, reader->After(&cursor));
                return absl::OkStatus();
              }).ok());
  ASSERT_EQ(page.size(), 1u);
  EXPECT_EQ(page[0].key, "new");
  EXPECT_TRUE(reader->After(&cursor)->empty());
}

TEST_F(RedisStoreTest, AServerThatDiesGivesMissesAndComesBack) {
  const auto redis = Connect("t");
  SemanticCache cache(OptionsOf(100), redis.get());
  const std::vector<float> asked = RandomUnit(random);
  ASSERT_TRUE(cache.Insert(Question(), kChat, asked, "answer", 1).ok());
  server.Stop();
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(Hits(cache, Question(), kChat, asked));
    EXPECT_EQ(cache.Insert(Question(), kChat, asked, "x", 1).code(),
              absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(cache.counts()[kChat].entries, 1u);
  server.Start();
  EXPECT_TRUE(Await([&] { return cache.Insert(Question(), kChat, asked, "new", 1); }).ok());
  // The old answer went with the server; whoever finds that out forgets it.
  EXPECT_TRUE(Hits(cache, Question(), kChat, asked, "new") ||
              Hits(cache, Question(), kChat, asked, "new"));
}

}  // namespace
}  // namespace trivium::router
