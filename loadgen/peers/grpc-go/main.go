// The echo on grpc-go, tuned as its documentation allows and typed by the official code generator.
//
// Takes nothing; listens on a free loopback port, says its address on stdout, serves until its stdin
// ends. The suite pins the process to one core, so the Go runtime runs one thread of Go code at a time
// (GOMAXPROCS counts the cores that it may use): nothing is to be set for that.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"bidi-echo/peers/grpc-go/build/echov1"
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

type echo struct {
	echov1.UnimplementedEchoServer
}

// Bidi sends headers at once, because clients wait for them, then every message back.
func (echo) Bidi(stream echov1.Echo_BidiServer) error {
	if err := stream.SendHeader(metadata.Pairs("server", "grpc-go/"+grpc.Version)); err != nil {
		return err
	}
	// One value for all messages: RecvMsg sets it anew, and SendMsg is done with it when it returns.
	var message echov1.EchoMessage
	for {
		if err := stream.RecvMsg(&message); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.Send(&message); err != nil {
			return err
		}
	}
}

func main() {
	debug.SetGCPercent(garbagePercent)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatalf("cannot listen on a loopback port: %v", err)
	}
	server := grpc.NewServer(
		grpc.ReadBufferSize(bufferBytes),
		grpc.WriteBufferSize(bufferBytes),
		grpc.SharedWriteBuffer(true),
		grpc.StaticConnWindowSize(connectionWindowBytes),
		grpc.StaticStreamWindowSize(streamWindowBytes),
		grpc.MaxConcurrentStreams(streamsMax),
		grpc.MaxRecvMsgSize(messageBytesMax),
		grpc.NumStreamWorkers(uint32(runtime.GOMAXPROCS(0))),
	)
	echov1.RegisterEchoServer(server, echo{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println(listener.Addr())
	if err := server.Serve(listener); err != nil {
		log.Fatalf("cannot serve: %v", err)
	}
}
