// A request and its answer, free of any HTTP library, and what a handler of requests looks like.
// Values; safe from any thread.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace trivium::router::http {

class Exchange;

struct RequestHead {
  std::string method;
  std::string path;              // without query, percent-decoded
  std::string content_type;      // in lower case, without parameters
  std::string content_encoding;  // in lower case
  // Every value of the two, as it came.
  std::vector<std::string> authorization = {}, x_api_key = {};
};

struct Request {
  RequestHead head;
  // Never null. Counts against the server's body memory until the last holder lets it go, whether
  // or not the client still waits.
  std::shared_ptr<const std::string> body;
};

struct Response {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  // Besides Date, Connection and what describes the body. Names and values are ours, never input.
  std::vector<std::pair<std::string, std::string>> headers = {};
};

// Both methods are called on the server's thread and never block. A HEAD request comes as the GET
// that it stands for.
class Handler {
 public:
  virtual ~Handler() = default;
  // Before the body is read: the answer that refuses the request, or nothing.
  virtual std::optional<Response> Refuse(const RequestHead& head) = 0;
  // The answer goes to `exchange`, now or later, from any thread.
  virtual void Handle(Request request, std::shared_ptr<Exchange> exchange) = 0;
  // In the API's own form, for what the server itself refuses: 400, 408, 413, 417, 431, 503.
  virtual Response Error(int status, std::string_view message) const = 0;
};

// "%7E" -> "~"; nullopt when an escape is broken or hides a NUL.
std::optional<std::string> DecodePath(std::string_view target);

}  // namespace trivium::router::http
