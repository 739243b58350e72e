// The limit of whatever speaks HTTP/2: an echo that knows frames, and nothing of what is in them.
//
// In: HTTP/2 without TLS, prior knowledge, on a loopback port. Out: every DATA frame goes back as it came,
// on its stream, then grpc-status 0. No message, no protobuf, no header is ever looked at: each request
// gets the same canned response, whatever its path. What every server owes the protocol it does all the
// same: SETTINGS and PING are answered, flow control is kept in both directions, streams are counted.
//
// One thread. A turn of a connection is one read, all frames of it, one write. Echoes that lie side by
// side in what was read are never copied: they are written from where they were read.
//
// Bounds: a byte is credited to the client (stream and connection) when its echo leaves, so the echoes
// that wait for a window of the client's are at most CONNECTION_WINDOW; nothing is read from a client that
// does not take what is written, which is at most one `output`; header blocks are not kept. No time limits:
// a yardstick, not a server for strangers.
//
// usage: echo PORT (0: a free one). Says its address on stdout; serves until its stdin ends.
#define _GNU_SOURCE
#include <sys/queue.h>

#include "../c/serve.h"

enum {
    // As bidi-echo's own defaults (src/config.rs), so that no server is throttled more than another.
    CONNECTION_WINDOW = 16 << 20,
    STREAM_WINDOW = 1 << 20,
    STREAMS_MAX = 4096,
    // HTTP/2's own (RFC 9113, 6.5.2 and 6.9).
    WINDOW_AT_FIRST = 65535,
    WINDOW_MAX = INT32_MAX,
    PAYLOAD_BYTES_MAX = 16 << 10,
    PAYLOAD_BYTES_LIMIT = (1 << 24) - 1,
    HEAD_BYTES = 9,
    FRAME_BYTES_MAX = HEAD_BYTES + PAYLOAD_BYTES_MAX,
    // Shared by all connections, so an idle one owns neither.
    READ_BYTES_MAX = 256 << 10,
    INPUT_BYTES_MAX = FRAME_BYTES_MAX + READ_BYTES_MAX,
    // What is written in one go of echoes that had to wait for a window.
    HELD_BYTES_A_WRITE = 256 << 10,
    // The longest answer in proportion is to an empty request: 70 bytes for 9.
    ANSWER_FACTOR_MAX = 8,
    OUTPUT_BYTES_MAX = ANSWER_FACTOR_MAX * INPUT_BYTES_MAX + HELD_BYTES_A_WRITE + 2 * FRAME_BYTES_MAX,
    // A drained stream keeps a buffer up to this size; larger ones would pile up on idle streams.
    KEPT_BYTES_MAX = 16 << 10,
    BUCKETS_AT_FIRST = 16,
};

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE,
       CONTINUATION };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8 };
enum { INITIAL_WINDOW_SIZE = 4, MAX_FRAME_SIZE = 5 };
enum error { PROTOCOL_ERROR = 1, INTERNAL_ERROR = 2, FLOW_CONTROL_ERROR = 3, STREAM_CLOSED = 5,
             FRAME_SIZE_ERROR = 6, REFUSED_STREAM = 7 };

static const char PREFACE[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
enum { PREFACE_BYTES = sizeof PREFACE - 1 };

// Both begin by giving up HPACK's dynamic table (RFC 7541, 6.3), so that any table size a client asks for
// is kept. :status 200, content-type and server, by their places in the static table.
static const char RESPONSE[] = "\x20\x88\x0f\x10\x10" "application/grpc" "\x0f\x27\x0c" "http2-frames";
static const char TRAILERS[] = "\x20\x00\x0b" "grpc-status" "\x01" "0";

struct windows {
    int64_t send;        // what we may send; may be below 0 (RFC 9113, 6.9.2)
    int64_t receive;     // what the client may send
    uint32_t uncredited; // what left, and was not credited yet
};

struct stream {
    struct stream *next; // in its bucket
    TAILQ_ENTRY(stream) siblings;
    struct windows windows;
    uint8_t *held; // echoes that wait for a window
    size_t begin, end, capacity;
    uint32_t id;
    bool ended;   // the client half-closed
    bool waiting; // among its connection's
};

struct connection {
    int fd;
    bool greeted;       // the client's preface came
    bool closing;       // GOAWAY is the last thing that is sent
    bool may_release;   // a window opened, or the last release was cut short
    uint32_t last_id;   // the newest stream
    uint32_t block_id;  // the stream whose header block goes on; else 0
    uint32_t window_at_first; // of streams, for what we send
    struct windows windows;
    struct stream **buckets;
    uint32_t bucket_count, stream_count;
    TAILQ_HEAD(, stream) waiting;
    uint8_t *partial; // the beginning of a frame
    size_t partial_bytes;
    uint8_t *unsent; // what the socket did not take; else NULL
    size_t unsent_begin, unsent_end;
};

static uint8_t input[INPUT_BYTES_MAX];
static uint8_t output[OUTPUT_BYTES_MAX];
static size_t output_used;
// Echoes that are still where they were read; they follow the output.
static const uint8_t *run;
static size_t run_bytes;

// --- Output -------------------------------------------------------------------------------------

// OUTPUT_BYTES_MAX says why there is room.
static uint8_t *room(size_t length) {
    if (length > sizeof output - output_used) abort();
    uint8_t *begin = output + output_used;
    output_used += length;
    return begin;
}

static void copy_run(void) {
    if (run_bytes == 0) return;
    memcpy(room(run_bytes), run, run_bytes);
    run_bytes = 0;
}

static void echo_in_place(const uint8_t *frame, size_t length) {
    if (run_bytes > 0 && run + run_bytes == frame) {
        run_bytes += length;
        return;
    }
    copy_run();
    run = frame;
    run_bytes = length;
}

static void put_u32(uint8_t *bytes, uint32_t value) {
    for (int i = 0; i < 4; i++) bytes[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint32_t get_u32(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static void put_frame(uint8_t type, uint8_t flags, uint32_t id, const void *payload, size_t length) {
    copy_run();
    uint8_t *frame = room(HEAD_BYTES + length);
    put_u32(frame, (uint32_t)length << 8 | type);
    frame[4] = flags;
    put_u32(frame + 5, id);
    if (length > 0) memcpy(frame + HEAD_BYTES, payload, length);
}

static void put_frame_u32(uint8_t type, uint32_t id, uint32_t value) {
    uint8_t payload[4];
    put_u32(payload, value);
    put_frame(type, 0, id, payload, sizeof payload);
}

// Ends the connection; for the caller to return.
static bool refuse(struct connection *c, enum error error) {
    uint8_t payload[8];
    put_u32(payload, c->last_id);
    put_u32(payload + 4, error);
    put_frame(GOAWAY, 0, 0, payload, sizeof payload);
    c->closing = true;
    return false;
}

// --- Streams ------------------------------------------------------------------------------------

static struct stream **bucket_of(const struct connection *c, uint32_t id) {
    return &c->buckets[(id >> 1) & (c->bucket_count - 1)];
}

static struct stream *find(const struct connection *c, uint32_t id) {
    struct stream *s = *bucket_of(c, id);
    while (s && s->id != id) s = s->next;
    return s;
}

static bool grow(struct connection *c) {
    struct stream **old = c->buckets;
    uint32_t old_count = c->bucket_count;
    struct stream **buckets = calloc(2 * (size_t)old_count, sizeof *buckets);
    if (!buckets) return false;
    c->buckets = buckets;
    c->bucket_count = 2 * old_count;
    for (uint32_t i = 0; i < old_count; i++) {
        for (struct stream *s = old[i], *next; s; s = next) {
            next = s->next;
            struct stream **bucket = bucket_of(c, s->id);
            s->next = *bucket;
            *bucket = s;
        }
    }
    free(old);
    return true;
}

static struct stream *add(struct connection *c, uint32_t id) {
    if (c->stream_count >= c->bucket_count && !grow(c)) return NULL;
    struct stream *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->id = id;
    s->windows = (struct windows){.send = c->window_at_first, .receive = STREAM_WINDOW};
    struct stream **bucket = bucket_of(c, id);
    s->next = *bucket;
    *bucket = s;
    c->stream_count++;
    return s;
}

static void take_out(struct connection *c, struct stream *s) {
    struct stream **place = bucket_of(c, s->id);
    while (*place != s) place = &(*place)->next;
    *place = s->next;
    if (s->waiting) TAILQ_REMOVE(&c->waiting, s, siblings);
    c->stream_count--;
    free(s->held);
    free(s);
}

static void end_stream(struct connection *c, struct stream *s) {
    put_frame(HEADERS, END_HEADERS | END_STREAM, s->id, TRAILERS, sizeof TRAILERS - 1);
    take_out(c, s);
}

// --- Flow control -------------------------------------------------------------------------------

static bool received(struct windows *w, size_t length) {
    w->receive -= (int64_t)length;
    return w->receive >= 0;
}

// Tells the client at every half of a window that it may send that much more.
static void credit(struct windows *w, uint32_t id, size_t length, uint32_t size) {
    w->uncredited += (uint32_t)length;
    if (w->uncredited < size / 2) return;
    put_frame_u32(WINDOW_UPDATE, id, w->uncredited);
    w->receive += w->uncredited;
    w->uncredited = 0;
}

static void credit_both(struct connection *c, struct stream *s, size_t length) {
    credit(&c->windows, 0, length, CONNECTION_WINDOW);
    if (!s->ended) credit(&s->windows, s->id, length, STREAM_WINDOW);
}

static void account_echo(struct connection *c, struct stream *s, size_t length) {
    c->windows.send -= (int64_t)length;
    s->windows.send -= (int64_t)length;
    credit_both(c, s, length);
}

static int64_t sendable(const struct connection *c, const struct stream *s) {
    return c->windows.send < s->windows.send ? c->windows.send : s->windows.send;
}

static bool hold(struct connection *c, struct stream *s, const uint8_t *bytes, size_t length) {
    size_t held = s->end - s->begin;
    if (s->end + length > s->capacity) {
        if (s->begin > 0) memmove(s->held, s->held + s->begin, held);
        s->begin = 0;
        s->end = held;
        size_t capacity = s->capacity ? s->capacity : 256;
        while (capacity < held + length) capacity *= 2;
        uint8_t *grown = capacity > s->capacity ? realloc(s->held, capacity) : s->held;
        if (!grown) return refuse(c, INTERNAL_ERROR);
        s->held = grown;
        s->capacity = capacity;
    }
    if (length > 0) memcpy(s->held + s->end, bytes, length);
    s->end += length;
    if (!s->waiting) TAILQ_INSERT_TAIL(&c->waiting, s, siblings);
    s->waiting = true;
    return true;
}

static void release_stream(struct connection *c, struct stream *s, size_t output_limit) {
    while (s->begin < s->end && sendable(c, s) > 0 && output_used < output_limit) {
        size_t length = s->end - s->begin;
        if (length > PAYLOAD_BYTES_MAX) length = PAYLOAD_BYTES_MAX;
        if ((int64_t)length > sendable(c, s)) length = (size_t)sendable(c, s);
        put_frame(DATA, 0, s->id, s->held + s->begin, length);
        s->begin += length;
        account_echo(c, s, length);
    }
    if (s->begin < s->end) return;
    TAILQ_REMOVE(&c->waiting, s, siblings);
    s->waiting = false;
    s->begin = s->end = 0;
    if (s->ended) {
        end_stream(c, s);
    } else if (s->capacity > KEPT_BYTES_MAX) {
        free(s->held);
        s->held = NULL;
        s->capacity = 0;
    }
}

// Sends what waited, as far as the windows and one write allow.
static void release(struct connection *c) {
    if (!c->may_release || c->closing) return;
    c->may_release = false;
    if (TAILQ_EMPTY(&c->waiting)) return;
    copy_run();
    size_t output_limit = output_used + HELD_BYTES_A_WRITE;
    for (struct stream *s = TAILQ_FIRST(&c->waiting), *next; s && c->windows.send > 0; s = next) {
        if (output_used >= output_limit) {
            c->may_release = true;
            return;
        }
        next = TAILQ_NEXT(s, siblings);
        release_stream(c, s, output_limit);
    }
}

// --- Frames -------------------------------------------------------------------------------------

struct frame {
    const uint8_t *head, *payload;
    uint32_t length, id;
    uint8_t type, flags;
};

static bool is_known(const struct connection *c, uint32_t id) {
    return id % 2 == 1 && id <= c->last_id;
}

static bool on_data(struct connection *c, const struct frame *f) {
    if (!is_known(c, f->id)) return refuse(c, PROTOCOL_ERROR);
    if (!received(&c->windows, f->length)) return refuse(c, FLOW_CONTROL_ERROR);
    struct stream *s = find(c, f->id);
    if (!s) {
        // It was reset or refused while this was on its way.
        credit(&c->windows, 0, f->length, CONNECTION_WINDOW);
        return true;
    }
    if (s->ended) return refuse(c, STREAM_CLOSED);
    if (!received(&s->windows, f->length)) return refuse(c, FLOW_CONTROL_ERROR);
    const uint8_t *bytes = f->payload;
    size_t length = f->length;
    s->ended = f->flags & END_STREAM;
    if (f->flags & PADDED) {
        if (length == 0 || bytes[0] >= length) return refuse(c, PROTOCOL_ERROR);
        size_t padding = 1 + (size_t)bytes[0];
        bytes++;
        length -= padding;
        credit_both(c, s, padding);
    }
    if (s->waiting || (length > 0 && (int64_t)length > sendable(c, s)))
        return hold(c, s, bytes, length);
    if (length > 0) {
        // Without flags and the reserved bit, the frame is its own echo.
        if (f->flags == 0 && f->head[5] < 0x80)
            echo_in_place(f->head, HEAD_BYTES + length);
        else
            put_frame(DATA, 0, f->id, bytes, length);
        account_echo(c, s, length);
    }
    if (s->ended) end_stream(c, s);
    return true;
}

static bool on_headers(struct connection *c, const struct frame *f) {
    if (f->id % 2 == 0) return refuse(c, PROTOCOL_ERROR);
    bool ends = f->flags & END_STREAM;
    c->block_id = f->flags & END_HEADERS ? 0 : f->id;
    struct stream *s = find(c, f->id);
    if (s) {
        // Trailers of the request.
        if (!ends || s->ended) return refuse(c, s->ended ? STREAM_CLOSED : PROTOCOL_ERROR);
        s->ended = true;
        if (!s->waiting) end_stream(c, s);
        return true;
    }
    if (f->id <= c->last_id) return true;
    c->last_id = f->id;
    if (c->stream_count >= STREAMS_MAX) {
        put_frame_u32(RST_STREAM, f->id, REFUSED_STREAM);
        return true;
    }
    if (!(s = add(c, f->id))) return refuse(c, INTERNAL_ERROR);
    // The response's headers leave at once, before the first message: clients wait for them.
    put_frame(HEADERS, END_HEADERS, f->id, RESPONSE, sizeof RESPONSE - 1);
    s->ended = ends;
    if (ends) end_stream(c, s);
    return true;
}

static bool on_reset(struct connection *c, const struct frame *f) {
    if (f->length != 4) return refuse(c, FRAME_SIZE_ERROR);
    if (!is_known(c, f->id)) return refuse(c, PROTOCOL_ERROR);
    struct stream *s = find(c, f->id);
    if (!s) return true;
    credit(&c->windows, 0, s->end - s->begin, CONNECTION_WINDOW);
    take_out(c, s);
    return true;
}

static bool move_windows(struct connection *c, uint32_t window_at_first) {
    int64_t difference = (int64_t)window_at_first - c->window_at_first;
    c->window_at_first = window_at_first;
    for (uint32_t i = 0; i < c->bucket_count; i++)
        for (struct stream *s = c->buckets[i]; s; s = s->next)
            if ((s->windows.send += difference) > WINDOW_MAX) return false;
    return true;
}

static bool on_settings(struct connection *c, const struct frame *f) {
    if (f->id != 0) return refuse(c, PROTOCOL_ERROR);
    if (f->flags & ACK) return f->length == 0 || refuse(c, FRAME_SIZE_ERROR);
    if (f->length % 6 != 0) return refuse(c, FRAME_SIZE_ERROR);
    for (const uint8_t *it = f->payload; it < f->payload + f->length; it += 6) {
        uint32_t value = get_u32(it + 2);
        int name = it[0] << 8 | it[1];
        if (name == MAX_FRAME_SIZE && (value < PAYLOAD_BYTES_MAX || value > PAYLOAD_BYTES_LIMIT))
            return refuse(c, PROTOCOL_ERROR);
        if (name == INITIAL_WINDOW_SIZE && (value > WINDOW_MAX || !move_windows(c, value)))
            return refuse(c, FLOW_CONTROL_ERROR);
    }
    c->may_release = true;
    put_frame(SETTINGS, ACK, 0, NULL, 0);
    return true;
}

static bool on_ping(struct connection *c, const struct frame *f) {
    if (f->id != 0) return refuse(c, PROTOCOL_ERROR);
    if (f->length != 8) return refuse(c, FRAME_SIZE_ERROR);
    if (!(f->flags & ACK)) put_frame(PING, ACK, 0, f->payload, 8);
    return true;
}

static bool on_window_update(struct connection *c, const struct frame *f) {
    if (f->length != 4) return refuse(c, FRAME_SIZE_ERROR);
    if (f->id != 0 && !is_known(c, f->id)) return refuse(c, PROTOCOL_ERROR);
    struct stream *s = f->id == 0 ? NULL : find(c, f->id);
    if (f->id != 0 && !s) return true;
    struct windows *w = s ? &s->windows : &c->windows;
    uint32_t more = get_u32(f->payload) & WINDOW_MAX;
    if (more == 0) return refuse(c, PROTOCOL_ERROR);
    w->send += more;
    c->may_release = true;
    return w->send <= WINDOW_MAX || refuse(c, FLOW_CONTROL_ERROR);
}

// False: the connection is closing.
static bool on_frame(struct connection *c, const struct frame *f) {
    if (c->block_id != 0) {
        if (f->type != CONTINUATION || f->id != c->block_id) return refuse(c, PROTOCOL_ERROR);
        if (f->flags & END_HEADERS) c->block_id = 0;
        return true;
    }
    switch (f->type) {
    case DATA: return on_data(c, f);
    case HEADERS: return on_headers(c, f);
    case RST_STREAM: return on_reset(c, f);
    case SETTINGS: return on_settings(c, f);
    case PING: return on_ping(c, f);
    case WINDOW_UPDATE: return on_window_update(c, f);
    case PUSH_PROMISE:
    case CONTINUATION: return refuse(c, PROTOCOL_ERROR);
    // PRIORITY, GOAWAY and what nobody knows yet change nothing here.
    default: return true;
    }
}

// Handles the whole frames of what was read. Out: how much they are.
static size_t handle(struct connection *c, const uint8_t *bytes, size_t length) {
    size_t used = 0;
    if (!c->greeted) {
        size_t there = length < PREFACE_BYTES ? length : PREFACE_BYTES;
        if (memcmp(bytes, PREFACE, there) != 0) {
            refuse(c, PROTOCOL_ERROR);
            return length;
        }
        if (there < PREFACE_BYTES) return 0;
        c->greeted = true;
        used = PREFACE_BYTES;
    }
    while (length - used >= HEAD_BYTES) {
        const uint8_t *head = bytes + used;
        struct frame f = {.head = head, .payload = head + HEAD_BYTES, .length = get_u32(head) >> 8,
                          .type = head[3], .flags = head[4], .id = get_u32(head + 5) & WINDOW_MAX};
        if (f.length > PAYLOAD_BYTES_MAX) {
            refuse(c, FRAME_SIZE_ERROR);
            return length;
        }
        if (length - used - HEAD_BYTES < f.length) break;
        used += HEAD_BYTES + f.length;
        if (!on_frame(c, &f)) return length;
    }
    return used;
}

// --- One connection: read once, handle all, write once ------------------------------------------

// False: the client is gone.
static bool read_and_handle(struct connection *c) {
    if (c->partial_bytes > 0) memcpy(input, c->partial, c->partial_bytes);
    ssize_t read = recv(c->fd, input + c->partial_bytes, READ_BYTES_MAX, 0);
    if (read == 0) return false;
    if (read < 0) return errno == EAGAIN || errno == EINTR;
    size_t length = c->partial_bytes + (size_t)read;
    size_t used = handle(c, input, length);
    c->partial_bytes = length - used;
    if (c->partial_bytes == 0) return true;
    if (!c->partial && !(c->partial = malloc(FRAME_BYTES_MAX))) return false;
    memcpy(c->partial, input + used, c->partial_bytes);
    return true;
}

static bool write_output(struct connection *c) {
    if (output_used > 0) copy_run();
    const uint8_t *bytes = output_used > 0 ? output : run;
    size_t length = output_used > 0 ? output_used : run_bytes;
    output_used = run_bytes = 0;
    if (length == 0) return true;
    ssize_t sent = send(c->fd, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return false;
    size_t left = length - (sent > 0 ? (size_t)sent : 0);
    if (left == 0) return true;
    if (!(c->unsent = malloc(left))) return false;
    memcpy(c->unsent, bytes + (length - left), left);
    c->unsent_begin = 0;
    c->unsent_end = left;
    watch(c, EPOLLOUT);
    return true;
}

static bool write_unsent(struct connection *c) {
    size_t left = c->unsent_end - c->unsent_begin;
    ssize_t sent = send(c->fd, c->unsent + c->unsent_begin, left, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN || errno == EINTR;
    c->unsent_begin += (size_t)sent;
    if (c->unsent_begin < c->unsent_end) return true;
    free(c->unsent);
    c->unsent = NULL;
    watch(c, EPOLLIN);
    return true;
}

static bool turn(struct connection *c, uint32_t events) {
    output_used = run_bytes = 0;
    if (c->unsent) {
        if (!write_unsent(c)) return false;
    } else if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !read_and_handle(c)) {
        return false;
    }
    do {
        if (c->unsent) return true;
        release(c);
        if (!write_output(c)) return false;
    } while (c->may_release && !c->closing);
    return c->unsent || !c->closing;
}

static int socket_of(const struct connection *c) {
    return c->fd;
}

static struct connection *opened(int fd) {
    static const uint8_t settings[] = {
        0, 3, 0, 0, STREAMS_MAX >> 8, STREAMS_MAX & 255,
        0, INITIAL_WINDOW_SIZE, STREAM_WINDOW >> 24, STREAM_WINDOW >> 16 & 255,
        STREAM_WINDOW >> 8 & 255, STREAM_WINDOW & 255,
    };
    struct connection *c = calloc(1, sizeof *c);
    struct stream **buckets = calloc(BUCKETS_AT_FIRST, sizeof *buckets);
    if (!c || !buckets) {
        free(c);
        free(buckets);
        return NULL;
    }
    *c = (struct connection){
        .fd = fd,
        .window_at_first = WINDOW_AT_FIRST,
        .windows = {.send = WINDOW_AT_FIRST, .receive = CONNECTION_WINDOW},
        .buckets = buckets,
        .bucket_count = BUCKETS_AT_FIRST,
    };
    TAILQ_INIT(&c->waiting);
    put_frame(SETTINGS, 0, 0, settings, sizeof settings);
    put_frame_u32(WINDOW_UPDATE, 0, CONNECTION_WINDOW - WINDOW_AT_FIRST);
    // A new socket takes these few bytes.
    ssize_t sent = send(fd, output, output_used, MSG_NOSIGNAL);
    bool is_sent = sent == (ssize_t)output_used;
    output_used = 0;
    if (is_sent) return c;
    closed(c);
    return NULL;
}

static void closed(struct connection *c) {
    for (uint32_t i = 0; i < c->bucket_count; i++)
        while (c->buckets[i]) take_out(c, c->buckets[i]);
    free(c->buckets);
    free(c->partial);
    free(c->unsent);
    free(c);
}

int main(int argc, char **argv) {
    serve(argc > 1 ? (uint16_t)strtoul(argv[1], NULL, 10) : 0);
    return EXIT_SUCCESS;
}
