// The log lines of gRPC and protobuf, which otherwise go to stderr in another form. Safe from any
// thread.
#pragma once

namespace trivium::net {

// From now on they are events named "grpc" and "protobuf" at level debug. gRPC's are left alone
// where GRPC_VERBOSITY is set.
void RedirectGrpcLog();

}  // namespace trivium::net
