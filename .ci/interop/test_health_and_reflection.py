"""Health v1 and reflection, v1 and v1alpha, as grpcio's own packages read them; and drains.

A drain ends a server, so each of its tests starts one of its own.
"""

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from conftest import DEADLINE_S

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

KNOWN = ["", "Chat", "echo.v1.Echo"]


def health(channel):
    return health_pb2_grpc.HealthStub(channel)


def about(service):
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.parametrize("service", KNOWN)
def test_a_check_says_serving(channel, service):
    assert health(channel).Check(about(service), timeout=DEADLINE_S).status == SERVING


def test_a_check_of_an_unknown_service_is_not_found(channel):
    with pytest.raises(grpc.RpcError) as refused:
        health(channel).Check(about("no.such.Service"), timeout=DEADLINE_S)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", KNOWN)
def test_a_watch_says_serving_and_goes_on(channel, service):
    watch = health(channel).Watch(about(service), timeout=DEADLINE_S)
    assert next(watch).status == SERVING
    assert watch.is_active()
    watch.cancel()


def test_a_watch_of_an_unknown_service_says_so_and_goes_on(channel):
    watch = health(channel).Watch(about("no.such.Service"), timeout=DEADLINE_S)
    assert next(watch).status == SERVICE_UNKNOWN
    assert watch.is_active()
    watch.cancel()


@pytest.mark.parametrize("service", KNOWN)
def test_a_drain_is_seen_by_a_watch_which_then_ends(start_server, connect, service):
    server = start_server()
    watch = health(connect(server.address)).Watch(about(service), timeout=DEADLINE_S)
    assert next(watch).status == SERVING
    server.terminate()
    assert [answer.status for answer in watch] == [NOT_SERVING]
    assert watch.code() == grpc.StatusCode.OK
    assert server.wait()[0] == 0


def test_a_drain_lets_open_streams_finish(start_server, connect, stubs, converse):
    server = start_server("--drain-limit", f"{DEADLINE_S}s")
    channel = connect(server.address)
    stream = converse(stubs.chat_grpc.ChatStub(channel).chat)
    stream.send(stubs.chat.ChatMessage(name="before", message="1"))
    assert stream.receive().value == "before: 1"
    watch = health(channel).Watch(about(""), timeout=DEADLINE_S)
    assert next(watch).status == SERVING
    server.terminate()
    assert [answer.status for answer in watch] == [NOT_SERVING]
    stream.send(stubs.chat.ChatMessage(name="after", message="2"))
    assert stream.receive().value == "after: 2"
    assert stream.finish() == grpc.StatusCode.OK
    code, stdout = server.wait()
    assert (code, len(stdout)) == (0, 1)


def test_a_drain_ends_a_stream_that_never_ends_as_unavailable(
    start_server, connect, stubs, converse
):
    server = start_server("--drain-limit", "500ms")
    stream = converse(stubs.chat_grpc.ChatStub(connect(server.address)).chat)
    stream.send(stubs.chat.ChatMessage(name="n", message="m"))
    assert stream.receive().value == "n: m"
    server.terminate()
    with pytest.raises(grpc.RpcError):
        stream.receive()
    assert stream.call.code() == grpc.StatusCode.UNAVAILABLE
    assert server.wait()[0] == 0


class ReflectionChannel:
    """Sends grpcio-reflection's calls to either version, each with a deadline.

    The package knows v1alpha alone; v1 is the same on the wire, under another path.
    """

    def __init__(self, channel, version):
        self._channel = channel
        self._version = version

    def stream_stream(self, path, *args, **kwargs):
        """As of `grpc.Channel`."""
        path = path.replace(".v1alpha.", f".{self._version}.")
        method = self._channel.stream_stream(path, *args, **kwargs)
        return lambda requests: method(requests, timeout=DEADLINE_S)


@pytest.fixture(params=["v1", "v1alpha"])
def reflection(channel, request):
    """What one version of reflection tells."""
    return ProtoReflectionDescriptorDatabase(ReflectionChannel(channel, request.param))


def test_reflection_lists_every_service(reflection):
    assert sorted(reflection.get_services()) == [
        "Chat",
        "echo.v1.Echo",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


def test_every_service_that_reflection_lists_can_be_built(reflection):
    pool = DescriptorPool(reflection)
    for service in reflection.get_services():
        assert pool.FindServiceByName(service).methods


def test_the_contracts_can_be_built_from_reflection(reflection):
    pool = DescriptorPool(reflection)
    check_method(pool, "Chat", "chat", "ChatMessage", "google.protobuf.StringValue")
    check_method(pool, "echo.v1.Echo", "Bidi", "echo.v1.EchoMessage", "echo.v1.EchoMessage")
    chat_message = pool.FindMessageTypeByName("ChatMessage")
    assert [(field.name, field.number) for field in chat_message.fields] == [
        ("name", 1),
        ("message", 2),
    ]
    echo_message = pool.FindMessageTypeByName("echo.v1.EchoMessage")
    assert [(field.name, field.number) for field in echo_message.fields] == [("payload", 1)]


def check_method(pool, service, name, input_type, output_type):
    method = pool.FindServiceByName(service).FindMethodByName(name)
    assert (method.input_type.full_name, method.output_type.full_name) == (input_type, output_type)
    assert method.client_streaming and method.server_streaming


@pytest.mark.xfail(
    strict=True,
    raises=grpc.RpcError,
    reason="tonic-reflection 0.14 ends the stream with NOT_FOUND where the protocol wants an "
    "ErrorResponse in a message",
)
def test_an_unknown_symbol_is_answered_with_a_message(reflection):
    with pytest.raises(KeyError):
        reflection.FindFileContainingSymbol("no.such.Service")


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_is_off_unless_asked_for(start_server, connect, version):
    channel = connect(start_server().address)
    database = ProtoReflectionDescriptorDatabase(ReflectionChannel(channel, version))
    with pytest.raises(grpc.RpcError) as refused:
        database.get_services()
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
