"""A server under test, channels to it, and the stubs of its contracts.

In: BIDI_ECHO_BIN, the path of the built server. Out: fixtures. A server listens on a free port,
which is read from its log, and must end with exit code 0 when it is told to. Stubs are generated
from the repository's proto/ into a temporary folder, at each run. Nothing here sleeps, and nothing
waits without a deadline.
"""

import importlib
import os
import queue
import re
import subprocess
import sys
import threading
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[2] / "proto"

# Seconds that any single wait may take; generous, because CI shares two cores.
DEADLINE_S = 30


class Server:
    """A running server. Its log is read on a thread, so that a full pipe never stops it."""

    def __init__(self, *flags):
        binary = os.environ.get("BIDI_ECHO_BIN")
        if not binary:
            pytest.exit("BIDI_ECHO_BIN is not set: pass the path of the built server", returncode=2)
        # The flags here decide what is tested, not the caller's environment.
        env = {name: v for name, v in os.environ.items() if not name.startswith("BIDI_ECHO_")}
        self._process = subprocess.Popen(
            [binary, "--listen", "127.0.0.1:0", *flags],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._log = queue.Queue()
        threading.Thread(target=self._read_log, daemon=True).start()
        self.address = self._listening_address()

    def _read_log(self):
        for line in self._process.stderr:
            self._log.put(line)
        self._log.put(None)

    def _listening_address(self):
        log = ""
        while (line := self._log.get(timeout=DEADLINE_S)) is not None:
            if found := re.search(r"\blisten=(127\.0\.0\.1:\d+)", line):
                return found.group(1)
            log += line
        raise AssertionError(f"the server ended before it listened:\n{log}")

    def terminate(self):
        """Asks the server to drain (SIGTERM)."""
        self._process.terminate()

    def wait(self):
        """Waits for the end; returns the exit code and the lines on stdout."""
        code = self._process.wait(timeout=DEADLINE_S)
        # A line or two: they fit into the pipe, so reading them after the end loses nothing.
        return code, self._process.stdout.read().splitlines()

    def kill(self):
        """Leaves nothing running, whatever a test did."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(timeout=DEADLINE_S)


# What carries the server's HTTP/2: the inline transport with either placement, and tonic's.
TRANSPORTS = {
    "inline": ["--transport", "inline", "--placement", "inline"],
    "task": ["--transport", "inline", "--placement", "task"],
    "tonic": ["--transport", "tonic"],
}


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request):
    """Name of a transport: every test runs with each."""
    return request.param


@pytest.fixture
def start_server(transport):
    """Starts servers of a test's own, with its flags."""
    servers = []

    def start(*flags):
        servers.append(Server(*TRANSPORTS[transport], *flags))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def address(transport):
    """Address of the server that most tests share; reflection is on."""
    server = Server(*TRANSPORTS[transport], "--reflection")
    try:
        yield server.address
        server.terminate()
        code, stdout = server.wait()
        assert code == 0
        assert len(stdout) == 1 and stdout[0].startswith("stopped: "), stdout
    finally:
        server.kill()


@pytest.fixture
def connect():
    """Opens channels, each with a connection of its own, straight to the server."""
    channels = []

    def connect_to(address):
        # Without a pool of its own a channel would share the connection of an earlier test; and a
        # proxy named in the environment is for the package registry, not for loopback.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        channels.append(grpc.insecure_channel(address, options=options))
        return channels[-1]

    yield connect_to
    for channel in channels:
        channel.close()


@pytest.fixture
def channel(connect, address):
    """A channel to the shared server."""
    return connect(address)


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """The generated modules: `chat`, `chat_grpc`, `echo`, `echo_grpc`."""
    out = tmp_path_factory.mktemp("stubs")
    well_known = resources.files("grpc_tools") / "_proto"
    files = ["grpc_bidirectional_streaming.proto", "echo/v1/echo.proto"]
    arguments = [f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main(["protoc", *arguments, *files]) == 0, "the contracts do not compile"
    sys.path.insert(0, str(out))
    return SimpleNamespace(
        chat=importlib.import_module("grpc_bidirectional_streaming_pb2"),
        chat_grpc=importlib.import_module("grpc_bidirectional_streaming_pb2_grpc"),
        echo=importlib.import_module("echo.v1.echo_pb2"),
        echo_grpc=importlib.import_module("echo.v1.echo_pb2_grpc"),
    )


class Conversation:
    """One bidirectional call whose two directions a test drives apart."""

    def __init__(self, method, **call_options):
        self._outbound = queue.Queue()
        self.call = method(self._requests(), timeout=DEADLINE_S, **call_options)

    def _requests(self):
        while (message := self._outbound.get(timeout=2 * DEADLINE_S)) is not None:
            yield message

    def send(self, message):
        """Hands a message to the call."""
        self._outbound.put(message)

    def half_close(self):
        """Ends the client's side."""
        self._outbound.put(None)

    def receive(self):
        """Returns the next reply; waits until the call's deadline at most."""
        return next(self.call)

    def finish(self):
        """Half-closes, expects no further reply, and returns the status."""
        self.half_close()
        assert list(self.call) == []
        return self.call.code()


@pytest.fixture
def converse():
    """Opens conversations; those that a test leaves open are cancelled."""
    conversations = []

    def open_on(method, **call_options):
        conversations.append(Conversation(method, **call_options))
        return conversations[-1]

    yield open_on
    for conversation in conversations:
        conversation.half_close()
        conversation.call.cancel()
