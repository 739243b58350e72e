// Starts a gRPC C++ server with the settings of a peer, and keeps a peer's manners: for the typed echo here
// and the generic one beside it.
//
// In: what registers a service. Out: the address as the first line of stdout, a server until stdin ends,
// and an exit code.
#ifndef SERVE_H
#define SERVE_H

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

// As bidi-echo's own defaults (src/config.rs), so that no server is throttled more than another.
constexpr int kStreamWindowBytes = 1 << 20;
constexpr int kStreamsMax = 4096;

// One read for as many frames as there are; 8 KiB at first by default.
constexpr int kBufferBytes = 256 << 10;

// What the server says of itself.
inline std::string Product(const char* kind) {
  return "grpc-cpp/" + grpc::Version() + " (" + kind + ")";
}

template <typename Register>
int Serve(Register add_service) {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsMax);
  // There is no setting for the connection's window: it grows with the streams'.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
  // The window is fixed, so nothing is to be found out by pings.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_WRITE_BUFFER_SIZE, kBufferBytes);
  builder.AddChannelArgument(GRPC_ARG_TCP_READ_CHUNK_SIZE, kBufferBytes);
  builder.AddChannelArgument(GRPC_ARG_OPTIMIZATION_TARGET, "throughput");
  // None of the filters that an echo does not need.
  builder.AddChannelArgument(GRPC_ARG_MINIMAL_STACK, 1);
  add_service(builder);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server) {
    std::cerr << "error: cannot listen on a loopback port\n";
    return 1;
  }
  std::cout << "127.0.0.1:" << port << std::endl;
  while (std::getchar() != EOF) {
    // Whatever is said there is ignored.
  }
  server->Shutdown(std::chrono::system_clock::now());
  return 0;
}

#endif
