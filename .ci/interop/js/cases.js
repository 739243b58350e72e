// The cases that every client of .ci/interop plays, with @grpc/grpc-js.
//
// Takes the address of a server with default limits; prints a line per case; exits with 1 if one
// failed. Nothing sleeps, and nothing waits without a deadline.
"use strict";

const assert = require("node:assert/strict");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");

const PROTO = path.resolve(__dirname, "../../../proto");

// Any single call; generous, because CI shares two cores.
const DEADLINE_MS = 60_000;

// The server's default limit; a payload's own encoding takes 5 bytes at this size.
const PAYLOAD_BYTES_MAX = (4 << 20) - 5;

const { OK, CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED } = grpc.status;

const files = ["grpc_bidirectional_streaming.proto", "echo/v1/echo.proto"];
const contracts = grpc.loadPackageDefinition(loadSync(files, { includeDirs: [PROTO] }));

/** One call whose two directions a case drives apart. */
class Conversation {
  #replies = [];
  #wake = () => {};
  #over = false;

  constructor(call) {
    this.call = call;
    this.headers = new Promise((resolve) => call.on("metadata", resolve));
    // Every call ends with a status; an error, if any, says the same once more.
    this.status = new Promise((resolve) => call.on("status", resolve));
    call.on("error", () => {});
    call.on("data", (reply) => {
      this.#replies.push(reply);
      this.#wake();
    });
    this.status.then(() => {
      this.#over = true;
      this.#wake();
    });
  }

  /** Resolves when there is room for another message. */
  async send(message) {
    if (!this.call.write(message)) {
      await new Promise((resolve) => this.call.once("drain", resolve));
    }
  }

  /** The next reply; undefined after the last. */
  async receive() {
    while (this.#replies.length === 0 && !this.#over) {
      await new Promise((resolve) => (this.#wake = resolve));
    }
    return this.#replies.shift();
  }

  /** Half-closes, expects no further reply; the status code. */
  async finish() {
    this.call.end();
    assert.equal(await this.receive(), undefined);
    return (await this.status).code;
  }
}

const address = process.argv[2];
assert.ok(address, "usage: node cases.js HOST:PORT");
// A proxy named in the environment is for the package registry, not for loopback.
const options = {
  "grpc.enable_http_proxy": 0,
  // grpc-js copies what a call holds back for a retry each time that a message has left, and takes
  // 1 MiB of it by default: 100,000 messages of 10 bytes are all held, and the copies take a minute.
  "grpc.per_rpc_retry_buffer_size": 8 << 10,
};
const credentials = grpc.credentials.createInsecure();
const echo = new contracts.echo.v1.Echo(address, credentials, options);
const chat = new contracts.Chat(address, credentials, options);

function deadline(ms) {
  return { deadline: Date.now() + ms };
}

function echoing(metadata = new grpc.Metadata(), options = deadline(DEADLINE_MS)) {
  return new Conversation(echo.bidi(metadata, options));
}

function numbered(number) {
  const payload = Buffer.alloc(8);
  payload.writeBigUInt64BE(BigInt(number));
  return { payload };
}

async function pingPong(conversation, messages) {
  for (let number = 0; number < messages; number++) {
    await conversation.send(numbered(number));
    assert.deepEqual(await conversation.receive(), numbered(number));
  }
}

/** Only a stream that was open before shows that its connection lived through what went wrong. */
async function besideANeighbour(wrong) {
  const neighbour = echoing();
  await pingPong(neighbour, 1);
  await wrong();
  await pingPong(neighbour, 1);
  assert.equal(await neighbour.finish(), OK);
}

const cases = {
  async "the seed's client hears what the seed's server says"() {
    const conversation = new Conversation(chat.chat(deadline(DEADLINE_MS)));
    for (const [name, message] of [["Sam", "Hi"], ["Ann", "Hey"], ["John", "Hello"]]) {
      await conversation.send({ name, message });
      assert.deepEqual(await conversation.receive(), { value: `${name}: ${message}` });
    }
    assert.equal(await conversation.finish(), OK);
  },

  async "ping-pong: each of 1,000 messages waits for the echo before it"() {
    const conversation = echoing();
    await pingPong(conversation, 1_000);
    assert.equal(await conversation.finish(), OK);
  },

  async "100,000 pipelined messages come back in order"() {
    const messages = 100_000;
    const conversation = echoing();
    const sending = (async () => {
      for (let number = 0; number < messages; number++) await conversation.send(numbered(number));
      conversation.call.end();
    })();
    for (let number = 0; number < messages; number++) {
      const reply = await conversation.receive();
      // Not deepEqual: that would take longer than the echo.
      assert.ok(reply?.payload.readBigUInt64BE() === BigInt(number), `reply ${number}`);
    }
    await sending;
    assert.equal(await conversation.finish(), OK);
  },

  async "1,000 streams at once are each answered"() {
    const conversations = Array.from({ length: 1_000 }, () => echoing());
    await Promise.all(conversations.map((conversation) => pingPong(conversation, 3)));
    const ends = await Promise.all(conversations.map((conversation) => conversation.finish()));
    assert.ok(ends.every((code) => code === OK));
  },

  async "half-close: what was sent before it is still answered"() {
    const conversation = echoing();
    for (let number = 0; number < 10; number++) await conversation.send(numbered(number));
    conversation.call.end();
    for (let number = 0; number < 10; number++) {
      assert.deepEqual(await conversation.receive(), numbered(number));
    }
    assert.equal((await conversation.status).code, OK);
  },

  async "half-close: an empty stream ends with OK"() {
    assert.equal(await echoing().finish(), OK);
  },

  async "headers come before the first message is sent"() {
    const conversation = echoing();
    await conversation.headers;
    await pingPong(conversation, 1);
    assert.equal(await conversation.finish(), OK);
  },

  async "cancel: the call is over and its neighbour is not"() {
    await besideANeighbour(async () => {
      const conversation = echoing();
      await pingPong(conversation, 1);
      conversation.call.cancel();
      assert.equal((await conversation.status).code, CANCELLED);
    });
  },

  // The server may count such a call as OK, on any transport: when grpc-js gives a call up, Node's
  // http2 ends the writable side first, so that DATA with END_STREAM leaves before RST_STREAM(CANCEL).
  // A server that reads the one before the other sees a half-close, which an echo answers with OK. Here
  // the server's own timer for grpc-timeout may be first or not: the client cannot tell.
  async "deadline: the client's own ends the call and not its neighbour"() {
    await besideANeighbour(async () => {
      const conversation = echoing(new grpc.Metadata(), deadline(100));
      assert.equal((await conversation.status).code, DEADLINE_EXCEEDED);
    });
  },

  async "deadline: the server ends a stream when its time is over"() {
    await besideANeighbour(async () => {
      // Sent, but not kept by the client: without a deadline of its own it waits for the server.
      const metadata = new grpc.Metadata();
      metadata.set("grpc-timeout", "100m");
      const conversation = echoing(metadata, {});
      await pingPong(conversation, 1);
      const status = await conversation.status;
      assert.equal(status.code, DEADLINE_EXCEEDED);
      assert.match(status.details, /grpc-timeout/, "not the server's words");
    });
  },

  async "a message of 4 MiB comes back"() {
    const conversation = echoing();
    const payload = Buffer.alloc(PAYLOAD_BYTES_MAX, "0123456789abcdef");
    for (let round = 0; round < 2; round++) {
      await conversation.send({ payload });
      // Compared as a whole: a mismatch of 4 MiB must not be printed.
      assert.ok(payload.equals((await conversation.receive()).payload), "another payload");
    }
    assert.equal(await conversation.finish(), OK);
  },

  async "metadata of any kind is taken and does not come back"() {
    for (let round = 0; round < 100; round++) {
      const metadata = new grpc.Metadata();
      metadata.set("x-round", String(round));
      metadata.set("x-long", "v".repeat(1_000));
      metadata.set("x-trace-bin", Buffer.from([0, 1, 255, round]));
      metadata.add("x-twice", "one");
      metadata.add("x-twice", "two");
      const conversation = echoing(metadata);
      const returned = await conversation.headers;
      assert.equal(await conversation.finish(), OK);
      const trailers = (await conversation.status).metadata;
      const names = Object.keys({ ...returned.getMap(), ...trailers.getMap() });
      assert.deepEqual(names.filter((name) => name.startsWith("x-")), []);
    }
  },

  async "a message that is too large is RESOURCE_EXHAUSTED and costs its neighbour nothing"() {
    await besideANeighbour(async () => {
      const conversation = echoing();
      await pingPong(conversation, 1);
      conversation.call.write({ payload: Buffer.alloc(PAYLOAD_BYTES_MAX + 1) });
      assert.equal((await conversation.status).code, RESOURCE_EXHAUSTED);
    });
  },
};

/** Fails instead of hanging. */
function inTime(promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("hangs")), DEADLINE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function main() {
  let failed = 0;
  for (const [name, play] of Object.entries(cases)) {
    try {
      await inTime(play());
      console.log(`ok      ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED  ${name}: ${error.stack}`);
    }
  }
  echo.close();
  chat.close();
  process.exit(failed === 0 ? 0 : 1);
}

main();
