// The yardstick: an echo of raw bytes on libnghttp2, the best-known C library for HTTP/2.
//
// In: HTTP/2 without TLS, prior knowledge, on a loopback port. Out: each stream of echo.v1.Echo/Bidi
// gets its own DATA bytes back, then grpc-status 0. It never looks inside a message: no protobuf, not
// even gRPC's 5-byte prefix. Whatever decodes and encodes messages has to be compared with that in mind.
//
// One thread. A turn of a connection is one read, all frames of it, all replies gathered in one buffer,
// one write. Nothing is allocated per message: a stream's buffer lives as long as its stream.
//
// Bounds: a byte is credited to the client (stream and connection) when its echo leaves, so a connection
// holds at most CONNECTION_WINDOW bytes of messages, whatever its peer does not read; nghttp2 bounds the
// control frames that wait. Streams that are stuck may starve their siblings of the connection's window.
//
// usage: echo PORT (0: a free one). Says its address on stdout; serves until its stdin ends.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    // As bidi-echo's own defaults (src/config.rs), so that no server is throttled more than another.
    CONNECTION_WINDOW = 16 << 20,
    STREAM_WINDOW = 1 << 20,
    STREAMS_MAX = 4096,
    // Shared by all connections, so an idle one owns neither.
    READ_BYTES_MAX = 256 << 10,
    WRITE_BYTES_MAX = 256 << 10,
    // The largest frame that nghttp2 makes unless asked for larger ones.
    FRAME_BYTES_MAX = 9 + (16 << 10),
    // A drained stream keeps a buffer up to this size; larger ones would pile up on idle streams.
    KEPT_BYTES_MAX = 16 << 10,
    EVENTS_MAX = 256,
};

static const char BIDI_PATH[] = "/echo.v1.Echo/Bidi";

struct stream {
    LIST_ENTRY(stream) siblings;
    uint8_t *bytes;
    size_t begin, end, capacity;
    bool is_bidi;  // the path is the one that is served
    bool ended;    // the client half-closed
    bool deferred; // nghttp2 waits for nghttp2_session_resume_data
};

struct connection {
    int fd;
    uint32_t events;
    nghttp2_session *session;
    LIST_HEAD(, stream) streams;
    uint8_t *unsent; // what the socket did not take; else NULL
    size_t unsent_begin, unsent_end;
};

static uint8_t input[READ_BYTES_MAX];
// One call of nghttp2_session_mem_send may give a DATA frame and another one beyond the limit.
static uint8_t output[WRITE_BYTES_MAX + 2 * FRAME_BYTES_MAX];
static size_t output_used;

static int epoll_fd, listener_fd;
static bool accepting = true;

// --- One stream: bytes in, the same bytes out ---------------------------------------------------

static nghttp2_nv header(const char *name, const char *value) {
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value),
                        NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}

static bool append(struct stream *s, const uint8_t *data, size_t length) {
    if (s->end + length > s->capacity) {
        size_t held = s->end - s->begin;
        if (s->begin > 0) memmove(s->bytes, s->bytes + s->begin, held);
        s->begin = 0;
        s->end = held;
        size_t capacity = s->capacity ? s->capacity : 256;
        while (capacity < held + length) capacity *= 2;
        if (capacity > s->capacity) {
            uint8_t *bytes = realloc(s->bytes, capacity);
            if (!bytes) return false;
            s->bytes = bytes;
            s->capacity = capacity;
        }
    }
    memcpy(s->bytes + s->end, data, length);
    s->end += length;
    return true;
}

static void remove_sent(struct stream *s, size_t length) {
    s->begin += length;
    if (s->begin < s->end) return;
    s->begin = s->end = 0;
    if (s->capacity > KEPT_BYTES_MAX) {
        free(s->bytes);
        s->bytes = NULL;
        s->capacity = 0;
    }
}

// How much of the stream goes into the next DATA frame; send_data then copies it.
static ssize_t next_data(nghttp2_session *session, int32_t id, uint8_t *unused_buffer, size_t length,
                         uint32_t *flags, nghttp2_data_source *source, void *unused) {
    (void)unused_buffer, (void)unused;
    struct stream *s = source->ptr;
    size_t held = s->end - s->begin;
    if (held == 0 && !s->ended) {
        s->deferred = true;
        return NGHTTP2_ERR_DEFERRED;
    }
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (s->ended && held <= length) {
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        nghttp2_nv trailers[] = {header("grpc-status", "0")};
        if (nghttp2_submit_trailer(session, id, trailers, 1)) return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    return (ssize_t)(held < length ? held : length);
}

static int send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head,
                     size_t length, nghttp2_data_source *source, void *unused) {
    (void)unused;
    struct stream *s = source->ptr;
    if (output_used >= WRITE_BYTES_MAX) return NGHTTP2_ERR_WOULDBLOCK;
    memcpy(output + output_used, head, 9);
    memcpy(output + output_used + 9, s->bytes + s->begin, length);
    output_used += 9 + length;
    remove_sent(s, length);
    return nghttp2_session_consume(session, frame->hd.stream_id, length);
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    struct connection *c = user;
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    struct stream *s = calloc(1, sizeof *s);
    if (!s) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    LIST_INSERT_HEAD(&c->streams, s, siblings);
    return nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, s);
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_length, const uint8_t *value, size_t value_length, uint8_t flags,
                     void *unused) {
    (void)flags, (void)unused;
    struct stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (s && name_length == 5 && memcmp(name, ":path", 5) == 0)
        s->is_bidi = value_length == sizeof BIDI_PATH - 1 && !memcmp(value, BIDI_PATH, value_length);
    return 0;
}

// The answer's headers leave at once, before the first message: clients wait for them.
static int answer(nghttp2_session *session, int32_t id, struct stream *s) {
    nghttp2_nv headers[] = {header(":status", "200"), header("content-type", "application/grpc"),
                            header("server", "nghttp2/" NGHTTP2_VERSION " (raw bytes)"),
                            header("grpc-status", "12")};
    if (!s->is_bidi) return nghttp2_submit_response(session, id, headers, 4, NULL);
    nghttp2_data_provider echo = {.source.ptr = s, .read_callback = next_data};
    return nghttp2_submit_response(session, id, headers, 3, &echo);
}

static int resume(nghttp2_session *session, int32_t id, struct stream *s) {
    if (!s->deferred) return 0;
    s->deferred = false;
    return nghttp2_session_resume_data(session, id);
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                   size_t length, void *unused) {
    (void)flags, (void)unused;
    struct stream *s = nghttp2_session_get_stream_user_data(session, id);
    if (!s || !s->is_bidi) return nghttp2_session_consume(session, id, length);
    if (!append(s, data, length)) return NGHTTP2_ERR_CALLBACK_FAILURE;
    return resume(session, id, s);
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *unused) {
    (void)unused;
    bool is_headers = frame->hd.type == NGHTTP2_HEADERS;
    if (!is_headers && frame->hd.type != NGHTTP2_DATA) return 0;
    int32_t id = frame->hd.stream_id;
    bool is_request = is_headers && frame->headers.cat == NGHTTP2_HCAT_REQUEST;
    bool is_end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    if (!is_request && !is_end) return 0;
    struct stream *s = nghttp2_session_get_stream_user_data(session, id);
    if (!s) return 0;
    s->ended |= is_end;
    return is_request ? answer(session, id, s) : resume(session, id, s);
}

static void free_stream(struct stream *s) {
    LIST_REMOVE(s, siblings);
    free(s->bytes);
    free(s);
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t error, void *unused) {
    (void)error, (void)unused;
    struct stream *s = nghttp2_session_get_stream_user_data(session, id);
    if (!s) return 0;
    size_t unread = s->end - s->begin;
    free_stream(s);
    return nghttp2_session_consume_connection(session, unread);
}

// --- One connection: read once, handle all, write once ------------------------------------------

static nghttp2_session_callbacks *callbacks;
static nghttp2_option *options;

static void prepare_nghttp2(void) {
    if (nghttp2_session_callbacks_new(&callbacks) || nghttp2_option_new(&options)) abort();
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, send_data);
    nghttp2_option_set_no_auto_window_update(options, 1);
    nghttp2_option_set_no_closed_streams(options, 1);
}

static bool begin_session(struct connection *c) {
    nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, STREAMS_MAX},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW},
        // Without the priority tree of RFC 7540 nghttp2 schedules streams more cheaply.
        {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
    };
    return !nghttp2_session_server_new2(&c->session, callbacks, c, options) &&
           !nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, 3) &&
           !nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0,
                                                  CONNECTION_WINDOW);
}

static void watch_listener(bool accept_now) {
    accepting = accept_now;
    struct epoll_event event = {.events = accept_now ? EPOLLIN : 0, .data.ptr = &listener_fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, listener_fd, &event);
}

static void close_connection(struct connection *c) {
    // nghttp2 calls on_stream_close for none of the streams that end with their session.
    while (!LIST_EMPTY(&c->streams)) free_stream(LIST_FIRST(&c->streams));
    nghttp2_session_del(c->session);
    free(c->unsent);
    close(c->fd);
    free(c);
    if (!accepting) watch_listener(true);
}

// Sends; true if all of it went, or what is left was kept for later.
static bool send_or_keep(struct connection *c, const uint8_t *bytes, size_t length) {
    ssize_t sent = send(c->fd, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return false;
    size_t left = length - (sent > 0 ? (size_t)sent : 0);
    if (left == 0) return true;
    if (!(c->unsent = malloc(left))) return false;
    memcpy(c->unsent, bytes + (length - left), left);
    c->unsent_begin = 0;
    c->unsent_end = left;
    return true;
}

static bool send_kept(struct connection *c) {
    ssize_t sent = send(c->fd, c->unsent + c->unsent_begin, c->unsent_end - c->unsent_begin,
                        MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN || errno == EINTR;
    c->unsent_begin += (size_t)sent;
    if (c->unsent_begin == c->unsent_end) {
        free(c->unsent);
        c->unsent = NULL;
    }
    return true;
}

// Fills the output with frames. False: the session is broken.
static bool gather(struct connection *c) {
    output_used = 0;
    while (output_used < WRITE_BYTES_MAX) {
        size_t before = output_used;
        const uint8_t *frame;
        ssize_t length = nghttp2_session_mem_send(c->session, &frame);
        if (length < 0) return false;
        // DATA went straight into the output, by send_data.
        if (length == 0 && output_used == before) return true;
        if (length > 0) memcpy(output + output_used, frame, (size_t)length);
        output_used += (size_t)length;
    }
    return true;
}

static bool write_all_there_is(struct connection *c) {
    if (c->unsent && !send_kept(c)) return false;
    while (!c->unsent) {
        if (!gather(c)) return false;
        if (output_used == 0) break;
        if (!send_or_keep(c, output, output_used)) return false;
        if (output_used < WRITE_BYTES_MAX) break;
    }
    uint32_t events = EPOLLIN | (c->unsent ? EPOLLOUT : 0);
    if (events != c->events) {
        struct epoll_event event = {.events = events, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
        c->events = events;
    }
    return c->unsent || nghttp2_session_want_read(c->session) ||
           nghttp2_session_want_write(c->session);
}

static bool turn(struct connection *c, uint32_t events) {
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        ssize_t length = recv(c->fd, input, sizeof input, 0);
        if (length == 0) return false;
        if (length < 0 && errno != EAGAIN && errno != EINTR) return false;
        if (length > 0 && nghttp2_session_mem_recv(c->session, input, (size_t)length) < 0)
            return false;
    }
    return write_all_there_is(c);
}

// --- The process --------------------------------------------------------------------------------

static void accept_some(void) {
    for (int accepted = 0; accepted < EVENTS_MAX; accepted++) {
        int fd = accept4(listener_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        // Out of descriptors: the listener rests until a connection is closed.
        if (fd < 0 && (errno == EMFILE || errno == ENFILE)) watch_listener(false);
        if (fd < 0) return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        struct connection *c = calloc(1, sizeof *c);
        if (!c) {
            close(fd);
            return;
        }
        c->fd = fd;
        c->events = EPOLLIN;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (!begin_session(c) || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) ||
            !write_all_there_is(c))
            close_connection(c);
    }
}

static void fail(const char *what) {
    perror(what);
    exit(EXIT_FAILURE);
}

static void listen_on(uint16_t port) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    listener_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener_fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener_fd, (struct sockaddr *)&address, length) || listen(listener_fd, 4096) ||
        getsockname(listener_fd, (struct sockaddr *)&address, &length))
        fail("cannot listen");
    printf("127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
}

int main(int argc, char **argv) {
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    prepare_nghttp2();
    listen_on(argc > 1 ? (uint16_t)strtoul(argv[1], NULL, 10) : 0);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event listening = {.events = EPOLLIN, .data.ptr = &listener_fd};
    struct epoll_event parent = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener_fd, &listening)) fail("epoll");
    // Refused for a stdin that is a file: then only a signal ends the server.
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &parent);
    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        int count = epoll_wait(epoll_fd, events, EVENTS_MAX, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            void *who = events[i].data.ptr;
            if (who == &listener_fd) {
                accept_some();
            } else if (who == NULL) {
                if (read(STDIN_FILENO, input, sizeof input) <= 0) return EXIT_SUCCESS;
            } else if (!turn(who, events[i].events)) {
                close_connection(who);
            }
        }
    }
}
