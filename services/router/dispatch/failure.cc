#include "services/router/dispatch/failure.h"

namespace trivium::router {

FailureAction ActionFor(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return FailureAction::kWaitForRoom;
    case absl::StatusCode::kAborted:
      return FailureAction::kMakeWay;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return FailureAction::kGiveUp;
    case absl::StatusCode::kFailedPrecondition:
      // It serves another model than the one that the request was made for, or what it keeps for
      // other tenants leaves too little: another worker may keep less.
      return FromAbsl(status.message()).find("fingerprint") != std::string_view::npos
                 ? FailureAction::kRefuse
                 : FailureAction::kElsewhere;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
      return FailureAction::kRefuse;
    default:
      return FailureAction::kRetry;
  }
}

}  // namespace trivium::router
