// One UCX worker: endpoints from it, messages to it, and the memory that UCX works on meanwhile.
// Thread-safety: none; one thread owns it.
// Invariant: a buffer given to UCX is not used again before UCX has ended the operation, or the
// worker is gone.
#pragma once

#include <ucp/api/ucp.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common/transfer/link.h"
#include "common/transfer/ucx_context.h"

namespace trivium::transfer {

class UcxWorker {
 public:
  // Names of parked payloads are `parked_base` + 1, 2, …
  static absl::StatusOr<std::unique_ptr<UcxWorker>> Create(const UcxContext& context,
                                                           uint64_t parked_base);
  // Closes the endpoints. Operations that UCX has not ended then end with the worker; what they
  // were receiving comes back through `leftover`.
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  const std::string& address() const { return address_; }
  int event_fd() const { return event_fd_; }

  // The one endpoint of this worker.
  absl::Status Connect(const std::string& address);
  bool connected() const { return ep_ != nullptr; }
  // The other side has gone.
  bool broken() const { return broken_; }
  // Swallowed without an endpoint or when it is broken.
  void Send(std::span<const uint8_t> header, Buffer payload);
  void SendRows(std::span<const uint8_t> header, SealedRows rows);
  void Receive(uint64_t parked, Buffer into, uint64_t cookie);
  void ReceiveRows(uint64_t parked, std::shared_ptr<ArrivingRows> into, uint64_t cookie);
  void Discard(uint64_t parked);
  // Ends the endpoint and everything on it: every receive has its result afterwards.
  void Close();

  // True when something moved.
  bool Progress();
  // False: something is there already, so sleeping would miss it.
  bool Arm();
  int64_t outstanding() const { return static_cast<int64_t>(operations_.size()); }

  struct Received {
    uint64_t cookie;
    Buffer buffer;
    bool ok;
  };
  std::vector<Incoming> TakeMessages() { return std::exchange(messages_, {}); }
  std::vector<Received> TakeReceived() { return std::exchange(received_, {}); }

 private:
  // What UCX works on until it says otherwise: the memory must not move or go.
  struct Operation {
    UcxWorker* worker;
    std::vector<uint8_t> header;
    Buffer buffer;
    bool receives = false;
    uint64_t cookie = 0;
    std::optional<SealedRows> rows{};
    std::shared_ptr<ArrivingRows> arriving{};
  };

  UcxWorker() = default;
  absl::Status Init(const UcxContext& context);
  absl::Status SetHandler();
  absl::Status MakeRowsTypes();
  void ReleaseParked();
  void Post(Operation* operation, const void* data, size_t count, ucp_datatype_t type,
            bool inlined);
  void Fetch(uint64_t parked, Operation* operation, void* into, size_t count, ucp_datatype_t type);
  void Track(Operation* operation, ucs_status_ptr_t request);
  void Finish(Operation* operation, ucs_status_t status);
  static ucs_status_t OnActiveMessage(void* self, const void* header, size_t header_length,
                                      void* data, size_t length, const ucp_am_recv_param_t* param);
  static void OnSendDone(void* request, ucs_status_t status, void* operation);
  static void OnReceiveDone(void* request, ucs_status_t status, size_t length, void* operation);
  static void OnError(void* self, ucp_ep_h ep, ucs_status_t status);

  ucp_worker_h worker_ = nullptr;
  ucp_ep_h ep_ = nullptr;
  bool broken_ = false;
  int event_fd_ = -1;
  std::string address_;
  ucp_datatype_t sealed_type_ = 0;    // how UCX reads SealedRows
  ucp_datatype_t arriving_type_ = 0;  // and writes ArrivingRows
  uint64_t next_parked_ = 1;
  std::unordered_map<uint64_t, void*> parked_;
  std::unordered_set<Operation*> operations_;
  std::vector<Incoming> messages_;
  std::vector<Received> received_;
};

}  // namespace trivium::transfer
