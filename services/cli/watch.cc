#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <ctime>
#include <mutex>
#include <thread>

#include "common/net/text.h"
#include "services/cli/client.h"
#include "services/cli/commands.h"
#include "services/cli/watch_view.h"

namespace trivium::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kInterruptedExitCode = 130;
constexpr char kEnter[] = "\x1b[?1049h\x1b[?25l\x1b[?7l";  // other screen, no cursor, no wrapping
constexpr char kLeave[] = "\x1b[?7h\x1b[?25h\x1b[?1049l";

// At once and whole: whoever ends the program next finds nothing half written.
void Write(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = write(STDOUT_FILENO, text.data(), text.size());
    if (written <= 0) _exit(1);  // nobody reads any more
    text.remove_prefix(static_cast<size_t>(written));
  }
}

struct Window {
  size_t rows = 24, columns = 80;
};

Window WindowSize() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0 || size.ws_col == 0) {
    return {};
  }
  return {size.ws_row, size.ws_col};
}

std::string TimeOfDay() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  return fmt::format("{:02}:{:02}:{:02}Z", parts.tm_hour, parts.tm_min, parts.tm_sec);
}

// A thread that lives as long as the process: Ctrl-C gives the terminal back and ends, a new window
// size wakes the one who draws. So neither waits for a router that does not answer.
class Signals {
 public:
  explicit Signals(bool terminal) {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGWINCH}) sigaddset(&set, signal);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    std::thread([this, set, terminal] { Run(set, terminal); }).detach();
  }

  // Returns at `until`, or earlier when the window has changed.
  void WaitUntil(Clock::time_point until) {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, until, [this] { return resized_; });
    resized_ = false;
  }

 private:
  void Run(const sigset_t& set, bool terminal) {
    for (int signal = 0; sigwait(&set, &signal) == 0;) {
      if (signal != SIGWINCH) {
        if (terminal) Write(kLeave);
        _exit(signal == SIGINT ? kInterruptedExitCode : 128 + signal);
      }
      const std::lock_guard lock(mutex_);
      resized_ = true;
      changed_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool resized_ = false;
};

class Watch {
 public:
  explicit Watch(const Options& options)
      : options_(options),
        client_(options.router, 0, options.api_key),
        terminal_(isatty(STDOUT_FILENO) == 1) {}

  int Run(Signals* signals) {
    if (terminal_) Write(kEnter);
    for (int count = 1;; ++count) {
      const Clock::time_point next =
          Clock::now() + std::chrono::duration_cast<Clock::duration>(
                             std::chrono::duration<double>(options_.watch.interval_s));
      Poll();
      if (!terminal_) PrintLine();
      const bool last = count == options_.watch.count;
      if (terminal_) Write(Redraw(Frame(WindowSize())));
      if (last) break;
      while (Clock::now() < next) {
        signals->WaitUntil(next);
        if (terminal_) Write(Redraw(Frame(WindowSize())));
      }
    }
    if (terminal_) LeaveFrame();
    return error_.ok() ? 0 : 1;
  }

 private:
  void Poll() {
    const auto status = client_.ClusterStatus();
    error_ = status.status();
    if (status.ok()) view_.Update(*status, Clock::now());
  }

  std::string Trouble() const {
    return "no answer, trying again: " + net::Escape(Message(error_), 300);
  }

  void PrintLine() const {
    Write(TimeOfDay() + " " + (error_.ok() ? view_.Summary() : Trouble()) + "\n");
  }

  // As much as fits; what was last seen stays while the router is gone.
  std::vector<std::string> Frame(const Window& window) const {
    std::vector<std::string> lines = view_.Lines(window.columns);
    const std::string head = error_.ok() ? TimeOfDay() + "  Ctrl-C ends" : Trouble();
    lines.insert(lines.begin(), CutToWidth(head, window.columns));
    if (lines.size() > window.rows) lines.resize(window.rows);
    return lines;
  }

  // The last frame stays to be read after the other screen is gone.
  void LeaveFrame() const {
    std::string text = kLeave;
    for (const std::string& line : Frame(WindowSize())) text += line + "\n";
    Write(text);
  }

  const Options& options_;
  Client client_;
  const bool terminal_;
  WatchView view_;
  absl::Status error_;
};

}  // namespace

int RunWatch(const Options& options) {
  // Before the client starts threads, which inherit what is blocked.
  static Signals signals(isatty(STDOUT_FILENO) == 1);
  return Watch(options).Run(&signals);
}

}  // namespace trivium::cli
