#include <sqlite3.h>
#include <sys/stat.h>

#include <cstdio>
#include <mutex>

#include "services/router/semantic_cache/document_store.h"

namespace trivium::router {
namespace {

constexpr int kBusyMs = 50;

constexpr char kSchema[] =
    "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA secure_delete=ON;"
    "CREATE TABLE IF NOT EXISTS answers(seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT "
    "NULL, entry BLOB NOT NULL, answer BLOB NOT NULL);";

// A prepared statement in use: parameters bound in order, reset at the end.
class Statement {
 public:
  explicit Statement(sqlite3_stmt* statement) : statement_(statement) {}
  ~Statement() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }
  Statement& Text(const std::string& text) {
    sqlite3_bind_text(statement_, ++bound_, text.data(), static_cast<int>(text.size()),
                      SQLITE_STATIC);
    return *this;
  }
  Statement& Blob(const std::string& bytes) {
    sqlite3_bind_blob64(statement_, ++bound_, bytes.data(), bytes.size(), SQLITE_STATIC);
    return *this;
  }
  Statement& Number(int64_t number) {
    sqlite3_bind_int64(statement_, ++bound_, number);
    return *this;
  }
  int Step() { return sqlite3_step(statement_); }
  int64_t NumberAt(int column) { return sqlite3_column_int64(statement_, column); }
  std::string BytesAt(int column) {
    const auto* bytes = static_cast<const char*>(sqlite3_column_blob(statement_, column));
    const int size = sqlite3_column_bytes(statement_, column);
    return bytes == nullptr ? std::string() : std::string(bytes, static_cast<size_t>(size));
  }

 private:
  sqlite3_stmt* const statement_;
  int bound_ = 0;
};

class SqliteStore final : public DocumentStore {
 public:
  ~SqliteStore() override {
    for (sqlite3_stmt* statement : {put_, get_, delete_, after_}) sqlite3_finalize(statement);
    sqlite3_close(db_);
  }

  absl::Status Open(const std::string& path) {
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX;
    if (sqlite3_open_v2(path.c_str(), &db_, flags, nullptr) != SQLITE_OK) return Failed("open");
    chmod(path.c_str(), S_IRUSR | S_IWUSR);
    sqlite3_busy_timeout(db_, kBusyMs);
    if (sqlite3_exec(db_, kSchema, nullptr, nullptr, nullptr) != SQLITE_OK) return Failed("open");
    RETURN_IF_ERROR(Check());
    RETURN_IF_ERROR(
        Prepare("INSERT OR REPLACE INTO answers(key, entry, answer) VALUES(?, ?, ?)", &put_));
    RETURN_IF_ERROR(Prepare("SELECT answer FROM answers WHERE key = ?", &get_));
    RETURN_IF_ERROR(Prepare("DELETE FROM answers WHERE key = ?", &delete_));
    return Prepare("SELECT seq, key, entry FROM answers WHERE seq > ? ORDER BY seq LIMIT ?",
                   &after_);
  }

  absl::Status Put(const StoredEntry& entry, const std::string& answer, int64_t) override {
    std::lock_guard lock(mutex_);
    Statement put(put_);
    put.Text(entry.key).Blob(entry.entry).Blob(answer);
    return put.Step() == SQLITE_DONE ? absl::OkStatus() : Failed("put");
  }

  absl::StatusOr<std::string> Answer(const std::string& key) override {
    std::lock_guard lock(mutex_);
    Statement get(get_);
    const int result = get.Text(key).Step();
    if (result == SQLITE_ROW) return get.BytesAt(0);
    if (result == SQLITE_DONE) return absl::NotFoundError("no such answer");
    return Failed("get");
  }

  absl::Status Delete(std::span<const std::string> keys) override {
    std::lock_guard lock(mutex_);
    sqlite3_exec(db_, "BEGIN", nullptr, nullptr, nullptr);
    bool is_done = true;
    for (const std::string& key : keys)
      is_done &= Statement(delete_).Text(key).Step() == SQLITE_DONE;
    is_done &= sqlite3_exec(db_, "COMMIT", nullptr, nullptr, nullptr) == SQLITE_OK;
    return is_done ? absl::OkStatus() : Failed("delete");
  }

  absl::StatusOr<std::vector<StoredEntry>> After(std::string* cursor) override {
    std::lock_guard lock(mutex_);
    Statement after(after_);
    after.Number(std::atoll(cursor->c_str())).Number(kPageMax);
    std::vector<StoredEntry> entries;
    int result = SQLITE_ROW;
    while ((result = after.Step()) == SQLITE_ROW) {
      *cursor = std::to_string(after.NumberAt(0));
      entries.push_back({after.BytesAt(1), after.BytesAt(2)});
    }
    if (result != SQLITE_DONE) return Failed("read");
    return entries;
  }

  bool is_shared() const override { return false; }

 private:
  // Whatever the file says of itself, its pages must hang together.
  absl::Status Check() {
    sqlite3_stmt* check = nullptr;
    RETURN_IF_ERROR(Prepare("PRAGMA quick_check(1)", &check));
    const bool is_whole = sqlite3_step(check) == SQLITE_ROW && Statement(check).BytesAt(0) == "ok";
    sqlite3_finalize(check);
    return is_whole ? absl::OkStatus() : absl::DataLossError("the file is damaged");
  }

  absl::Status Prepare(const char* sql, sqlite3_stmt** statement) {
    const int result =
        sqlite3_prepare_v3(db_, sql, -1, SQLITE_PREPARE_PERSISTENT, statement, nullptr);
    return result == SQLITE_OK ? absl::OkStatus() : Failed("prepare");
  }

  absl::Status Failed(const char* what) const {
    const int code = sqlite3_errcode(db_);
    if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB) {
      return absl::DataLossError("the file is damaged");
    }
    return Unavailable("cannot {}: {}", what, sqlite3_errmsg(db_));
  }

  std::mutex mutex_;
  sqlite3* db_ = nullptr;
  sqlite3_stmt *put_ = nullptr, *get_ = nullptr, *delete_ = nullptr, *after_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DocumentStore>> OpenSqliteStore(const std::string& path) {
  auto store = std::make_unique<SqliteStore>();
  absl::Status status = store->Open(path);
  if (status.code() == absl::StatusCode::kDataLoss) {
    store = std::make_unique<SqliteStore>();
    for (const char* suffix : {"", "-wal", "-shm"}) {
      std::rename((path + suffix).c_str(), (path + ".damaged" + suffix).c_str());
    }
    status = store->Open(path);
  }
  if (!status.ok()) return MakeStatus(status.code(), "{}: {}", path, Message(status));
  return store;
}

}  // namespace trivium::router
