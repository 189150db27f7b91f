// gRPC's own log lines, which otherwise go to stderr in another form. Safe from any thread.
#pragma once

namespace trivium::net {

// From now on they are events named "grpc" at level debug. Left alone where GRPC_VERBOSITY is set.
void RedirectGrpcLog();

}  // namespace trivium::net
