// The echo on grpc-dotnet and Kestrel, typed by the official generator.
//
// Takes nothing; listens on a free loopback port, says its address on stdout, serves until its stdin ends.
// Tuned for one core: one queue for socket I/O, whose continuations run where the I/O ended; no logs.

using System.Net;
using Echo.V1;
using Grpc.Core;
using Microsoft.AspNetCore.Server.Kestrel.Core;

// As bidi-echo's own defaults (src/config.rs), so that no server is throttled more than another.
const int ConnectionWindowBytes = 16 << 20;
const int StreamWindowBytes = 1 << 20;
const int StreamsMax = 4096;

var builder = WebApplication.CreateSlimBuilder(args);
builder.Logging.ClearProviders();
builder.WebHost.UseSockets(sockets =>
{
    sockets.IOQueueCount = 1;
    sockets.UnsafePreferInlineScheduling = true;
});
builder.WebHost.ConfigureKestrel(kestrel =>
{
    kestrel.AddServerHeader = false;
    kestrel.Limits.MaxRequestBodySize = null;
    kestrel.Limits.MinRequestBodyDataRate = null;
    kestrel.Limits.MinResponseDataRate = null;
    kestrel.Limits.Http2.InitialConnectionWindowSize = ConnectionWindowBytes;
    kestrel.Limits.Http2.InitialStreamWindowSize = StreamWindowBytes;
    kestrel.Limits.Http2.MaxStreamsPerConnection = StreamsMax;
    kestrel.Listen(IPAddress.Loopback, 0, listener => listener.Protocols = HttpProtocols.Http2);
});
builder.Services.AddGrpc();

var app = builder.Build();
app.MapGrpcService<Unchanged>();
await app.StartAsync();
Console.WriteLine(new Uri(app.Urls.First()).Authority);
await Task.Run(() => Console.OpenStandardInput().CopyTo(Stream.Null));
// Calls that go on are not waited for.
Environment.Exit(0);

internal sealed class Unchanged : Echo.V1.Echo.EchoBase
{
    private static readonly string Product = $"grpc-dotnet ({Environment.Version})";

    // Headers leave at once, because clients wait for them; then every message goes back.
    public override async Task Bidi(
        IAsyncStreamReader<EchoMessage> messages,
        IServerStreamWriter<EchoMessage> replies,
        ServerCallContext context)
    {
        await context.WriteResponseHeadersAsync(new Metadata { { "server", Product } });
        while (await messages.MoveNext())
        {
            await replies.WriteAsync(messages.Current);
        }
    }
}
