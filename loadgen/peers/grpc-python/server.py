"""The echo on grpcio's asyncio API, typed by the official generator.

Takes nothing; listens on a free loopback port, says its address on stdout, serves until its stdin ends.
One event loop, uvloop's; gRPC's C core polls beside it, on the same core.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "build"))

import grpc
import uvloop

from echo.v1 import echo_pb2_grpc

# As bidi-echo's own defaults (src/config.rs), so that no server is throttled more than another.
STREAM_WINDOW_BYTES = 1 << 20
STREAMS_MAX = 4096

OPTIONS = (
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    # gRPC's core has no setting for the connection's window: it grows with the streams'.
    ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    # The window is fixed, so nothing is to be found out by pings.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.optimization_target", "throughput"),
    # None of the filters that an echo does not need.
    ("grpc.minimal_stack", 1),
)


class Echo(echo_pb2_grpc.EchoServicer):
    """Echoes by read and write, which cost less than an async generator."""

    async def Bidi(self, request_iterator, context):
        # Headers leave at once, because clients wait for them.
        await context.send_initial_metadata((("server", f"grpc-python/{grpc.__version__}"),))
        read, write = context.read, context.write
        while (message := await read()) is not grpc.aio.EOF:
            await write(message)


async def main():
    server = grpc.aio.server(options=OPTIONS)
    echo_pb2_grpc.add_EchoServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.buffer.read)
    await server.stop(grace=None)


uvloop.run(main())
