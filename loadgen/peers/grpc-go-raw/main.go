// The echo on grpc-go with a codec that forwards bytes: what grpc-go costs without protobuf.
//
// Takes nothing; listens on a free loopback port, says its address on stdout, serves until its stdin
// ends. Tuned as the typed peer beside it (grpc-go). A message's bytes go back in the very buffers that they
// were received in: their references are counted, nothing is copied and nothing is looked at.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

const (
	// As bidi-echo's own defaults (src/config.rs), so that no server is throttled more than another.
	connectionWindowBytes = 16 << 20
	streamWindowBytes     = 1 << 20
	streamsMax            = 4096
	messageBytesMax       = 4 << 20

	// One read and one write for as many frames as there are; 32 KiB by default.
	bufferBytes = 256 << 10

	// Live memory is small and garbage is plenty, so collect it less often than by default (100).
	garbagePercent = 400
)

// raw is a codec whose messages are the buffers that hold them.
type raw struct{}

// Marshal gives the buffers away: grpc-go frees them when they are written.
func (raw) Marshal(message any) (mem.BufferSlice, error) {
	buffers, ok := message.(*mem.BufferSlice)
	if !ok {
		return nil, fmt.Errorf("raw codec: %T is not a *mem.BufferSlice", message)
	}
	return *buffers, nil
}

// Unmarshal keeps the buffers beyond this call by a reference of its own, which Marshal gives away.
func (raw) Unmarshal(data mem.BufferSlice, message any) error {
	buffers, ok := message.(*mem.BufferSlice)
	if !ok {
		return fmt.Errorf("raw codec: %T is not a *mem.BufferSlice", message)
	}
	data.Ref()
	*buffers = data
	return nil
}

// Name is protobuf's: on the wire nothing differs.
func (raw) Name() string { return "proto" }

// bidi sends headers at once, because clients wait for them, then every message back.
func bidi(_ any, stream grpc.ServerStream) error {
	if err := stream.SendHeader(metadata.Pairs("server", "grpc-go/"+grpc.Version+" (raw bytes)")); err != nil {
		return err
	}
	var message mem.BufferSlice
	for {
		if err := stream.RecvMsg(&message); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
}

// What the generator would write for proto/echo/v1/echo.proto, without its messages.
var service = grpc.ServiceDesc{
	ServiceName: "echo.v1.Echo",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{
		StreamName:    "Bidi",
		Handler:       bidi,
		ServerStreams: true,
		ClientStreams: true,
	}},
	Metadata: "echo/v1/echo.proto",
}

func main() {
	debug.SetGCPercent(garbagePercent)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatalf("cannot listen on a loopback port: %v", err)
	}
	server := grpc.NewServer(
		grpc.ForceServerCodecV2(raw{}),
		grpc.ReadBufferSize(bufferBytes),
		grpc.WriteBufferSize(bufferBytes),
		grpc.SharedWriteBuffer(true),
		grpc.StaticConnWindowSize(connectionWindowBytes),
		grpc.StaticStreamWindowSize(streamWindowBytes),
		grpc.MaxConcurrentStreams(streamsMax),
		grpc.MaxRecvMsgSize(messageBytesMax),
	)
	server.RegisterService(&service, nil)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println(listener.Addr())
	if err := server.Serve(listener); err != nil {
		log.Fatalf("cannot serve: %v", err)
	}
}
