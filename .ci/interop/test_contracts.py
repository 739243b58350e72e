"""The two contracts as another stack sees them: bytes, order, interleavings, endings.

Calls go through generated stubs, or through bare bytes where a stub would not send what is tested.
"""

import threading

import grpc
import pytest

from conftest import DEADLINE_S

CHAT = "/Chat/chat"
ECHO = "/echo.v1.Echo/Bidi"

# Request and reply frame of the seed contract: flag, length (4 bytes), message.
GOLDEN_FRAMES = [
    ("00000000090a0353616d12024869", "00000000090a0753616d3a204869"),
    ("000000000a0a03416e6e1203486579", "000000000a0a08416e6e3a20486579"),
    ("000000000d0a044a6f686e120548656c6c6f", "000000000d0a0b4a6f686e3a2048656c6c6f"),
    ("0000000000", "00000000040a023a20"),
]

# The server's default limit; a payload's own encoding takes 5 bytes at this size.
MESSAGE_BYTES_MAX = 4 << 20
PAYLOAD_BYTES_MAX = MESSAGE_BYTES_MAX - 5


def raw(channel, path):
    """The method with bytes in and bytes out, whatever they mean."""
    return channel.stream_stream(path)


def message_of(frame):
    """A frame's message; gRPC's own library adds and removes the prefix."""
    frame = bytes.fromhex(frame)
    assert frame[0] == 0 and int.from_bytes(frame[1:5], "big") == len(frame) - 5
    return frame[5:]


def chat(channel, stubs):
    return stubs.chat_grpc.ChatStub(channel).chat


def echo(channel, stubs):
    return stubs.echo_grpc.EchoStub(channel).Bidi


def failure(call):
    """Reads the call to its end, which must be an error, and returns its status code."""
    with pytest.raises(grpc.RpcError):
        list(call)
    return call.code()


@pytest.fixture
def neighbour(channel, stubs, converse):
    """A stream on the same connection; it must still echo after the test.

    Only a stream that was open before shows that the connection lived: a channel would open a new
    connection for a new stream and say nothing.
    """
    stream = converse(echo(channel, stubs))
    for payload in (b"before", b"after"):
        stream.send(stubs.echo.EchoMessage(payload=payload))
        assert stream.receive().payload == payload
        if payload == b"before":
            yield
    assert stream.finish() == grpc.StatusCode.OK


@pytest.fixture
def silence():
    """Requests of a client that says nothing and does not half-close while the test runs."""
    over = threading.Event()

    def requests():
        over.wait(2 * DEADLINE_S)
        yield from ()

    yield requests()
    over.set()


@pytest.mark.parametrize("request_frame, reply_frame", GOLDEN_FRAMES)
def test_a_golden_request_gets_its_golden_reply(channel, request_frame, reply_frame):
    call = raw(channel, CHAT)(iter([message_of(request_frame)]), timeout=DEADLINE_S)
    assert list(call) == [message_of(reply_frame)]
    assert call.code() == grpc.StatusCode.OK


def test_the_golden_requests_on_one_stream_are_answered_in_order(channel):
    requests = [message_of(request) for request, _ in GOLDEN_FRAMES]
    call = raw(channel, CHAT)(iter(requests), timeout=DEADLINE_S)
    assert list(call) == [message_of(reply) for _, reply in GOLDEN_FRAMES]


def test_the_seeds_client_hears_what_the_seeds_server_says(channel, stubs):
    said = [("Sam", "Hi"), ("Ann", "Hey"), ("John", "Hello")]
    requests = [stubs.chat.ChatMessage(name=name, message=message) for name, message in said]
    call = chat(channel, stubs)(iter(requests), timeout=DEADLINE_S)
    assert [reply.value for reply in call] == ["Sam: Hi", "Ann: Hey", "John: Hello"]
    assert call.code() == grpc.StatusCode.OK


def test_text_of_any_script_and_length_comes_back(channel, stubs):
    name, message = "Zoë\u0000 七", "🙂" * 50_000
    request = stubs.chat.ChatMessage(name=name, message=message)
    call = chat(channel, stubs)(iter([request]), timeout=DEADLINE_S)
    assert [reply.value for reply in call] == [f"{name}: {message}"]


def test_unknown_fields_are_skipped(channel):
    request, reply = map(message_of, GOLDEN_FRAMES[0])
    call = raw(channel, CHAT)(iter([request + b"\x18\x07"]), timeout=DEADLINE_S)
    assert list(call) == [reply]


@pytest.mark.parametrize("path", [CHAT, ECHO])
def test_an_empty_stream_ends_with_ok(channel, path):
    call = raw(channel, path)(iter([]), timeout=DEADLINE_S)
    assert list(call) == []
    assert call.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("path", [CHAT, ECHO])
def test_response_headers_leave_before_the_first_message(channel, converse, path):
    stream = converse(raw(channel, path))
    stream.call.initial_metadata()
    # The wait above also ends when the call fails; then it would not be alive.
    assert stream.call.is_active()
    stream.send(b"")
    stream.receive()
    assert stream.finish() == grpc.StatusCode.OK


# s = send the next message, r = receive the next reply, c = half-close.
INTERLEAVINGS = ["srsrsrc", "sssrrrc", "sssscrrrr", "ssrsrrc", "sscrr", "srssrsrrc"]


@pytest.mark.parametrize("steps", INTERLEAVINGS)
def test_the_two_directions_are_independent(channel, stubs, converse, steps):
    stream = converse(chat(channel, stubs))
    sent = received = 0
    for step in steps:
        if step == "s":
            stream.send(stubs.chat.ChatMessage(name="n", message=str(sent)))
            sent += 1
        elif step == "r":
            assert stream.receive().value == f"n: {received}"
            received += 1
        elif step == "c":
            stream.half_close()
    assert list(stream.call) == []
    assert (sent, stream.call.code()) == (received, grpc.StatusCode.OK)


def test_all_may_be_sent_and_the_side_closed_before_anything_is_read(channel, stubs):
    all_taken = threading.Event()

    def requests():
        for number in range(1_000):
            yield stubs.echo.EchoMessage(payload=b"%d" % number)
        all_taken.set()

    call = echo(channel, stubs)(requests(), timeout=DEADLINE_S)
    assert all_taken.wait(DEADLINE_S)
    assert [reply.payload for reply in call] == [b"%d" % number for number in range(1_000)]


def test_each_of_a_thousand_messages_may_wait_for_the_echo_before_it(channel, stubs, converse):
    stream = converse(echo(channel, stubs))
    for number in range(1_000):
        stream.send(stubs.echo.EchoMessage(payload=b"%d" % number))
        assert stream.receive().payload == b"%d" % number
    assert stream.finish() == grpc.StatusCode.OK


def test_a_hundred_thousand_pipelined_messages_come_back_in_order(channel, stubs):
    payloads = [b"%06d" % number for number in range(100_000)]
    requests = (stubs.echo.EchoMessage(payload=payload) for payload in payloads)
    # Python alone needs some ten seconds of it.
    call = echo(channel, stubs)(requests, timeout=4 * DEADLINE_S)
    assert [reply.payload for reply in call] == payloads
    assert call.code() == grpc.StatusCode.OK


def test_a_stream_that_is_not_read_holds_no_other_up(channel, stubs, converse):
    unread = converse(echo(channel, stubs))
    # More than the server's window of a stream, less than its window of the connection.
    for _ in range(40):
        unread.send(stubs.echo.EchoMessage(payload=bytes(100_000)))
    other = converse(echo(channel, stubs))
    other.send(stubs.echo.EchoMessage(payload=b"through"))
    assert other.receive().payload == b"through"
    assert other.finish() == grpc.StatusCode.OK
    assert all(len(unread.receive().payload) == 100_000 for _ in range(40))
    assert unread.finish() == grpc.StatusCode.OK


@pytest.mark.parametrize("size", [0, 1, 1 << 20, PAYLOAD_BYTES_MAX])
def test_a_payload_of_any_size_up_to_the_limit_comes_back(channel, stubs, size):
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    requests = [stubs.echo.EchoMessage(payload=payload)] * 2
    call = echo(channel, stubs)(iter(requests), timeout=DEADLINE_S)
    # Compared as a whole: a mismatch of 4 MiB must not be printed.
    assert all(reply.payload == payload for reply in call) and call.code() == grpc.StatusCode.OK


def test_a_message_over_the_limit_is_resource_exhausted(channel, stubs, neighbour):
    request = stubs.echo.EchoMessage(payload=bytes(PAYLOAD_BYTES_MAX + 1))
    call = echo(channel, stubs)(iter([request]), timeout=DEADLINE_S)
    assert failure(call) == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_came_before_a_message_over_the_limit_is_still_answered(channel, stubs, converse):
    stream = converse(echo(channel, stubs))
    stream.send(stubs.echo.EchoMessage(payload=b"fits"))
    stream.send(stubs.echo.EchoMessage(payload=bytes(PAYLOAD_BYTES_MAX + 1)))
    assert stream.receive().payload == b"fits"
    assert failure(stream.call) == grpc.StatusCode.RESOURCE_EXHAUSTED


BROKEN = {
    "a length beyond the end": b"\x0a\x7f",
    "a tag that never ends": b"\xff" * 11,
    "a field number of 0": b"\x02\x00",
    "another wire type for a known field": b"\x08\x01",
}


@pytest.mark.parametrize("path", [CHAT, ECHO])
@pytest.mark.parametrize("message", BROKEN.values(), ids=BROKEN.keys())
def test_broken_protobuf_is_internal(channel, neighbour, path, message):
    call = raw(channel, path)(iter([message]), timeout=DEADLINE_S)
    assert failure(call) == grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("field", [b"\x0a", b"\x12"], ids=["name", "message"])
def test_text_that_is_not_utf8_is_internal(channel, neighbour, field):
    call = raw(channel, CHAT)(iter([field + b"\x02\xc3\x28"]), timeout=DEADLINE_S)
    assert failure(call) == grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("path", ["/Chat/Chat", "/echo.v1.Echo/Nope", "/no.such.Service/Bidi"])
def test_an_unknown_method_is_unimplemented(channel, neighbour, path):
    call = raw(channel, path)(iter([b""]), timeout=DEADLINE_S)
    assert failure(call) == grpc.StatusCode.UNIMPLEMENTED


def test_a_cancelled_call_leaves_the_channel_usable(channel, stubs, converse, neighbour):
    stream = converse(echo(channel, stubs))
    stream.send(stubs.echo.EchoMessage(payload=b"heard"))
    assert stream.receive().payload == b"heard"
    stream.call.cancel()
    assert failure(stream.call) == grpc.StatusCode.CANCELLED


def test_a_call_past_its_deadline_leaves_the_channel_usable(channel, neighbour, silence):
    call = raw(channel, ECHO)(silence, timeout=0.1)
    assert failure(call) == grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_server_ends_a_stream_whose_time_is_over(transport, channel, neighbour, silence):
    if transport == "tonic":
        pytest.skip("tonic keeps a deadline until the response's headers, which leave at once")
    # As metadata it is sent, but not kept by the client, which therefore waits for the server.
    call = raw(channel, ECHO)(silence, metadata=[("grpc-timeout", "100m")])
    assert failure(call) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "grpc-timeout" in call.details(), "not the server's words"


def test_metadata_of_any_kind_and_size_is_taken(channel):
    for number in range(100):
        metadata = [
            ("x-number", str(number)),
            ("x-long", "v" * 1_000),
            ("x-any-bin", bytes([0, 1, 255, number])),
            ("x-twice", "one"),
            ("x-twice", "two"),
        ]
        call = raw(channel, ECHO)(iter([]), metadata=metadata, timeout=DEADLINE_S)
        assert list(call) == []
        assert call.code() == grpc.StatusCode.OK


def test_metadata_does_not_come_back(channel, converse):
    sent = [("x-trace", "1"), ("x-trace-bin", b"\x00\x01")]
    stream = converse(raw(channel, CHAT), metadata=sent)
    stream.send(b"")
    stream.receive()
    assert stream.finish() == grpc.StatusCode.OK
    returned = [*stream.call.initial_metadata(), *stream.call.trailing_metadata()]
    assert not {key for key, _ in returned} & {key for key, _ in sent}
