// The echo on @grpc/grpc-js, typed by protobufjs.
//
// Takes nothing; listens on a free loopback port, says its address on stdout, serves until its stdin
// ends. protobufjs makes code for the message at start and is called without the plain objects that
// @grpc/proto-loader would make of each message on its way. Node runs JavaScript on one thread, so one core
// is all that it uses.
'use strict';

const path = require('node:path');
const { createRequire } = require('node:module');

const installed = createRequire(path.join(__dirname, 'build', 'package.json'));
const grpc = installed('@grpc/grpc-js');
const protobuf = installed('protobufjs');
const { version } = installed('@grpc/grpc-js/package.json');

// As bidi-echo's own default (src/config.rs). A server has no setting for windows: Node's are of 64 KiB.
const STREAMS_MAX = 4096;

const proto = path.join(__dirname, '..', '..', '..', 'proto', 'echo', 'v1', 'echo.proto');
const EchoMessage = protobuf.loadSync(proto).lookupType('echo.v1.EchoMessage');

const encode = message => EchoMessage.encode(message).finish();
const decode = bytes => EchoMessage.decode(bytes);

const service = {
  bidi: {
    path: '/echo.v1.Echo/Bidi',
    requestStream: true,
    responseStream: true,
    requestSerialize: encode,
    requestDeserialize: decode,
    responseSerialize: encode,
    responseDeserialize: decode,
  },
};

// Headers leave at once, because clients wait for them; then every message goes back as soon as it came.
function bidi(call) {
  const headers = new grpc.Metadata();
  headers.set('server', `grpc-js/${version}`);
  call.sendMetadata(headers);
  call.on('data', message => {
    if (call.write(message)) return;
    call.pause();
    call.once('drain', () => call.resume());
  });
  call.on('end', () => call.end());
}

const server = new grpc.Server({
  'grpc.max_concurrent_streams': STREAMS_MAX,
  // Nobody asks for its counters, which are kept for each message.
  'grpc.enable_channelz': 0,
});
server.addService(service, { bidi });
server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`127.0.0.1:${port}`);
});
process.stdin.on('end', () => process.exit(0)).resume();
