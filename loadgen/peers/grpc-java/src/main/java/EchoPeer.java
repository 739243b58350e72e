import echo.v1.EchoGrpc;
import echo.v1.EchoOuterClass.EchoMessage;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.netty.shaded.io.netty.channel.EventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollServerSocketChannel;
import java.io.IOException;
import java.net.InetSocketAddress;

/**
 * The echo on grpc-java and netty, typed by the official generator.
 *
 * <p>Takes nothing; listens on a free loopback port, says its address on stdout, serves until its
 * stdin ends. Tuned for the one core that the suite gives it: netty's epoll, one event loop, handlers
 * on that loop (directExecutor), no second thread between a message and its echo.
 */
public final class EchoPeer {
  /**
   * grpc-java has one value for stream and connection: bidi-echo's for connections (src/config.rs), so
   * that the connection is throttled no more than others.
   */
  private static final int FLOW_WINDOW_BYTES = 16 << 20;

  private static final int STREAMS_MAX = 4096;

  private static final Metadata.Key<String> SERVER =
      Metadata.Key.of("server", Metadata.ASCII_STRING_MARSHALLER);

  /** Echoes a message as soon as it came; asks for the next one when the transport takes more. */
  private static final class Echo extends ServerCall.Listener<EchoMessage> {
    private final ServerCall<EchoMessage, EchoMessage> call;
    private boolean isWaiting;

    /** Headers leave at once, because clients wait for them; a StreamObserver cannot do that. */
    Echo(ServerCall<EchoMessage, EchoMessage> call) {
      this.call = call;
      Metadata headers = new Metadata();
      headers.put(SERVER, "grpc-java (netty)");
      call.sendHeaders(headers);
      call.request(1);
    }

    @Override
    public void onMessage(EchoMessage message) {
      call.sendMessage(message);
      isWaiting = !call.isReady();
      if (!isWaiting) {
        call.request(1);
      }
    }

    @Override
    public void onReady() {
      if (isWaiting) {
        isWaiting = false;
        call.request(1);
      }
    }

    @Override
    public void onHalfClose() {
      call.close(Status.OK, new Metadata());
    }
  }

  public static void main(String[] arguments) throws IOException {
    ServerServiceDefinition service =
        ServerServiceDefinition.builder(EchoGrpc.SERVICE_NAME)
            .addMethod(EchoGrpc.getBidiMethod(), (call, headers) -> new Echo(call))
            .build();
    EventLoopGroup loop = new EpollEventLoopGroup(1);
    Server server =
        NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", 0))
            .channelType(EpollServerSocketChannel.class)
            .bossEventLoopGroup(loop)
            .workerEventLoopGroup(loop)
            .directExecutor()
            .flowControlWindow(FLOW_WINDOW_BYTES)
            .maxConcurrentCallsPerConnection(STREAMS_MAX)
            .addService(service)
            .build()
            .start();
    System.out.println("127.0.0.1:" + server.getPort());
    while (System.in.read() >= 0) {
      // Whatever is said there is ignored.
    }
    System.exit(0);
  }
}
