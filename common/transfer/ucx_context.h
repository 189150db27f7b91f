// UCX set up as transfers need it, whatever the environment says: error handling per peer, only
// transports in which nobody reaches into another process, active messages only, wake-up by a
// descriptor. Thread-safety: none; one thread owns it.
#pragma once

#include <ucp/api/ucp.h>

#include <memory>

#include "common/base/status.h"
#include "common/transfer/ucx_link.h"

namespace trivium::transfer {

class UcxContext {
 public:
  static absl::StatusOr<std::unique_ptr<UcxContext>> Create(const UcxLinkOptions& options);
  ~UcxContext();
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;

  ucp_context_h get() const { return context_; }

 private:
  UcxContext() = default;
  absl::Status Init(const UcxLinkOptions& options);

  ucp_context_h context_ = nullptr;
};

absl::Status UcxStatus(const char* what, ucs_status_t status);

}  // namespace trivium::transfer
