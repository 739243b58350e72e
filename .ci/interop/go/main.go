// The cases that every client of .ci/interop plays, with grpc-go.
//
// Takes the address of a server with default limits; prints a line per case; exits with 1 if one
// failed. Nothing sleeps, and nothing waits without a deadline.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	chatMethod = "/Chat/chat"
	echoMethod = "/echo.v1.Echo/Bidi"

	// Any single call; generous, because CI shares two cores.
	deadline = 60 * time.Second

	// The server's default limit; a payload's own encoding takes 5 bytes at this size.
	payloadBytesMax = 4<<20 - 5
)

var cases = []struct {
	name string
	play func(*grpc.ClientConn) error
}{
	{"the seed's client hears what the seed's server says", seed},
	{"ping-pong: each of 1,000 messages waits for the echo before it", pingPongs},
	{"100,000 pipelined messages come back in order", pipelined},
	{"1,000 streams at once are each answered", manyStreams},
	{"half-close: what was sent before it is still answered", halfClose},
	{"half-close: an empty stream ends with OK", emptyStream},
	{"headers come before the first message is sent", headersFirst},
	{"cancel: the call is over and its neighbour is not", besideANeighbour(cancelled)},
	{"deadline: the client's own ends the call and not its neighbour", besideANeighbour(clientsDeadline)},
	{"deadline: the server ends a stream when its time is over", besideANeighbour(serversDeadline)},
	{"a message of 4 MiB comes back", largest},
	{"metadata of any kind is taken and does not come back", metadataStays},
	{"a message that is too large is RESOURCE_EXHAUSTED and costs its neighbour nothing",
		besideANeighbour(tooLarge)},
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run . HOST:PORT")
		os.Exit(2)
	}
	// Passed through as it is: a proxy named in the environment is for the module proxy.
	connection, err := grpc.NewClient("passthrough:///"+os.Args[1],
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	failed := 0
	for _, each := range cases {
		if err := each.play(connection); err != nil {
			failed++
			fmt.Printf("FAILED  %s: %v\n", each.name, err)
			continue
		}
		fmt.Printf("ok      %s\n", each.name)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

// conversation is one call of the echo. Its messages are BytesValue: on the wire they are what
// echo.v1.EchoMessage is, so no code has to be generated.
type conversation struct {
	grpc.ClientStream
	cancel context.CancelFunc
}

func open(connection *grpc.ClientConn, ctx context.Context, method string,
	options ...grpc.CallOption) (*conversation, error) {
	ctx, cancel := context.WithCancel(ctx)
	description := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := connection.NewStream(ctx, description, method, options...)
	if err != nil {
		cancel()
		return nil, err
	}
	return &conversation{stream, cancel}, nil
}

// echoing opens a stream of the echo with the usual deadline.
func echoing(connection *grpc.ClientConn) (*conversation, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	opened, err := open(connection, ctx, echoMethod)
	if err != nil {
		cancel()
		return nil, err
	}
	inner := opened.cancel
	opened.cancel = func() { inner(); cancel() }
	return opened, nil
}

func (c *conversation) send(payload []byte) error {
	return c.SendMsg(wrapperspb.Bytes(payload))
}

func (c *conversation) expect(payload []byte) error {
	var reply wrapperspb.BytesValue
	if err := c.RecvMsg(&reply); err != nil {
		return fmt.Errorf("no reply: %w", err)
	}
	if !bytes.Equal(reply.Value, payload) {
		return fmt.Errorf("a reply of %d bytes is not what was sent", len(reply.Value))
	}
	return nil
}

func (c *conversation) pingPong(messages int) error {
	for number := range messages {
		if err := c.send(numbered(number)); err != nil {
			return err
		}
		if err := c.expect(numbered(number)); err != nil {
			return err
		}
	}
	return nil
}

// finish half-closes and wants no further reply and OK.
func (c *conversation) finish() error {
	defer c.cancel()
	if err := c.CloseSend(); err != nil {
		return err
	}
	return c.expectEnd(codes.OK)
}

// expectEnd wants no further reply and this code.
func (c *conversation) expectEnd(code codes.Code) error {
	err := c.RecvMsg(&wrapperspb.BytesValue{})
	if err == nil {
		return errors.New("one reply too many")
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if status.Code(err) != code {
		return fmt.Errorf("ended with %v instead of %v", err, code)
	}
	return nil
}

func numbered(number int) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(number))
}

// besideANeighbour plays a case beside a stream that was open before: only that shows that the
// connection lived through what went wrong.
func besideANeighbour(wrong func(*grpc.ClientConn) error) func(*grpc.ClientConn) error {
	return func(connection *grpc.ClientConn) error {
		neighbour, err := echoing(connection)
		if err != nil {
			return err
		}
		if err := neighbour.pingPong(1); err != nil {
			return err
		}
		if err := wrong(connection); err != nil {
			return err
		}
		if err := neighbour.pingPong(1); err != nil {
			return fmt.Errorf("the neighbour: %w", err)
		}
		return neighbour.finish()
	}
}

func seed(connection *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	conversation, err := open(connection, ctx, chatMethod, grpc.ForceCodec(rawCodec{}))
	if err != nil {
		return err
	}
	for _, said := range [][2]string{
		{"\x0a\x03Sam\x12\x02Hi", "\x0a\x07Sam: Hi"},
		{"\x0a\x03Ann\x12\x03Hey", "\x0a\x08Ann: Hey"},
		{"\x0a\x04John\x12\x05Hello", "\x0a\x0bJohn: Hello"},
	} {
		message, reply := []byte(said[0]), []byte(nil)
		if err := conversation.SendMsg(&message); err != nil {
			return err
		}
		if err := conversation.RecvMsg(&reply); err != nil {
			return err
		}
		if string(reply) != said[1] {
			return fmt.Errorf("%q was answered with %q", said[0], reply)
		}
	}
	if err := conversation.CloseSend(); err != nil {
		return err
	}
	if err := conversation.RecvMsg(new([]byte)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("ended with %v", err)
	}
	return nil
}

// rawCodec passes messages as the bytes they are.
type rawCodec struct{}

func (rawCodec) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }

func (rawCodec) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = bytes.Clone(data)
	return nil
}

func (rawCodec) Name() string { return "proto" }

func pingPongs(connection *grpc.ClientConn) error {
	conversation, err := echoing(connection)
	if err != nil {
		return err
	}
	if err := conversation.pingPong(1_000); err != nil {
		return err
	}
	return conversation.finish()
}

func pipelined(connection *grpc.ClientConn) error {
	const messages = 100_000
	conversation, err := echoing(connection)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		for number := range messages {
			if err := conversation.send(numbered(number)); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for number := range messages {
		if err := conversation.expect(numbered(number)); err != nil {
			return fmt.Errorf("message %d: %w", number, err)
		}
	}
	if err := <-sent; err != nil {
		return err
	}
	return conversation.finish()
}

func manyStreams(connection *grpc.ClientConn) error {
	const streams = 1_000
	failures := make(chan error, streams)
	var allOpen sync.WaitGroup
	allOpen.Add(streams)
	for range streams {
		go func() {
			conversation, err := echoing(connection)
			allOpen.Done()
			if err != nil {
				failures <- err
				return
			}
			allOpen.Wait()
			if err := conversation.pingPong(3); err != nil {
				failures <- err
				return
			}
			failures <- conversation.finish()
		}()
	}
	var all []error
	for range streams {
		all = append(all, <-failures)
	}
	return errors.Join(all...)
}

func halfClose(connection *grpc.ClientConn) error {
	const messages = 10
	conversation, err := echoing(connection)
	if err != nil {
		return err
	}
	for number := range messages {
		if err := conversation.send(numbered(number)); err != nil {
			return err
		}
	}
	if err := conversation.CloseSend(); err != nil {
		return err
	}
	for number := range messages {
		if err := conversation.expect(numbered(number)); err != nil {
			return err
		}
	}
	return conversation.expectEnd(codes.OK)
}

func emptyStream(connection *grpc.ClientConn) error {
	conversation, err := echoing(connection)
	if err != nil {
		return err
	}
	return conversation.finish()
}

func headersFirst(connection *grpc.ClientConn) error {
	conversation, err := echoing(connection)
	if err != nil {
		return err
	}
	if _, err := conversation.Header(); err != nil {
		return err
	}
	if err := conversation.pingPong(1); err != nil {
		return err
	}
	return conversation.finish()
}

func cancelled(connection *grpc.ClientConn) error {
	conversation, err := echoing(connection)
	if err != nil {
		return err
	}
	if err := conversation.pingPong(1); err != nil {
		return err
	}
	conversation.cancel()
	return conversation.expectEnd(codes.Canceled)
}

func clientsDeadline(connection *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	conversation, err := open(connection, ctx, echoMethod)
	if err != nil {
		return err
	}
	defer conversation.cancel()
	return conversation.expectEnd(codes.DeadlineExceeded)
}

// announced is a context whose deadline is sent but not kept here: it waits for the server's.
type announced struct {
	context.Context
	at time.Time
}

func (a announced) Deadline() (time.Time, bool) { return a.at, true }

func serversDeadline(connection *grpc.ClientConn) error {
	ctx := announced{context.Background(), time.Now().Add(100 * time.Millisecond)}
	conversation, err := open(connection, ctx, echoMethod)
	if err != nil {
		return err
	}
	defer conversation.cancel()
	// grpc-go ends the call by itself for a context that says it is over: this one never does.
	watchdog := time.AfterFunc(deadline, conversation.cancel)
	defer watchdog.Stop()
	err = conversation.RecvMsg(&wrapperspb.BytesValue{})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "grpc-timeout") {
		return fmt.Errorf("not the server's words: %v", err)
	}
	return nil
}

func largest(connection *grpc.ClientConn) error {
	conversation, err := echoing(connection)
	if err != nil {
		return err
	}
	payload := bytes.Repeat([]byte("0123456789abcdef"), payloadBytesMax/16+1)[:payloadBytesMax]
	for range 2 {
		if err := conversation.send(payload); err != nil {
			return err
		}
		if err := conversation.expect(payload); err != nil {
			return err
		}
	}
	return conversation.finish()
}

func metadataStays(connection *grpc.ClientConn) error {
	for round := range 100 {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		ctx = metadata.AppendToOutgoingContext(ctx, "x-round", fmt.Sprint(round),
			"x-long", strings.Repeat("v", 1_000), "x-trace-bin", string([]byte{0, 1, 255, byte(round)}),
			"x-twice", "one", "x-twice", "two")
		conversation, err := open(connection, ctx, echoMethod)
		if err != nil {
			return err
		}
		headers, err := conversation.Header()
		if err != nil {
			return err
		}
		if err := conversation.finish(); err != nil {
			return err
		}
		for name := range metadata.Join(headers, conversation.Trailer()) {
			if strings.HasPrefix(name, "x-") {
				return fmt.Errorf("%s came back", name)
			}
		}
	}
	return nil
}

func tooLarge(connection *grpc.ClientConn) error {
	conversation, err := echoing(connection)
	if err != nil {
		return err
	}
	defer conversation.cancel()
	if err := conversation.pingPong(1); err != nil {
		return err
	}
	// The server may end the stream while this is being sent: then EOF says that the status is here.
	err = conversation.send(make([]byte, payloadBytesMax+1))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return conversation.expectEnd(codes.ResourceExhausted)
}
