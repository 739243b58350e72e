/* The least that a client of HTTP/2 can do in a closed loop: opens streams of echo.v1.Echo/Bidi, sends the messages
 * in flight, and sends each DATA frame that comes back as it came, all frames of a read with one write. It decodes
 * nothing, checks nothing and records nothing: what it costs is what the system calls cost, and a copy.
 *
 * least PORT SERVER_PID CONNECTIONS STREAMS_PER_CONNECTION IN_FLIGHT PAYLOAD_BYTES SECONDS
 * Out: one line of JSON. Build: cc -O2 -o least least.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 256 << 10, OUT_BYTES = 64 << 20, EVENTS = 1024 };
enum { DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, GOAWAY = 7, WINDOW_UPDATE = 8 };
enum { ACK = 1, END_HEADERS = 4 };

struct connection {
    int fd;
    uint8_t *part; /* of a frame that is not complete yet */
    size_t part_bytes;
};

static uint8_t out[OUT_BYTES];
static size_t out_bytes;
static uint64_t messages, reads;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void put(const void *bytes, size_t count) {
    memcpy(out + out_bytes, bytes, count);
    out_bytes += count;
}

static void put_head(size_t length, uint8_t type, uint8_t flags, uint32_t stream) {
    uint8_t head[9] = {length >> 16, length >> 8, length, type, flags, stream >> 24, stream >> 16, stream >> 8, stream};
    put(head, sizeof head);
}

/* A field that enters no table. */
static void put_field(const char *name, const char *value) {
    uint8_t name_head[2] = {0, strlen(name)}, value_head = strlen(value);
    put(name_head, 2);
    put(name, name_head[1]);
    put(&value_head, 1);
    put(value, value_head);
}

static void put_message(uint32_t stream, size_t payload_bytes) {
    uint8_t length[5];
    int length_bytes = 0;
    for (size_t rest = payload_bytes; length_bytes == 0 || rest > 0; rest >>= 7)
        length[length_bytes++] = rest > 127 ? rest | 128 : rest;
    uint32_t message = 1 + length_bytes + payload_bytes;
    uint8_t prefix[6] = {0, message >> 24, message >> 16, message >> 8, message, 0x0a};
    put_head(5 + message, DATA, 0, stream);
    put(prefix, sizeof prefix);
    put(length, length_bytes);
    memset(out + out_bytes, 'x', payload_bytes);
    out_bytes += payload_bytes;
}

static void write_out(int fd) {
    for (size_t at = 0; at < out_bytes;) {
        ssize_t sent = send(fd, out + at, out_bytes - at, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) fail("send");
        if (sent > 0) at += sent;
    }
    out_bytes = 0;
}

static void open_one(struct connection *one, int port, int streams, int in_flight, size_t payload_bytes) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1;
    one->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(one->fd, (void *)&to, sizeof to)) fail("connect");
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(one->fd, F_SETFL, O_NONBLOCK);
    one->part = malloc(READ_BYTES);
    put("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    /* Windows that a run does not use up. */
    put_head(6, SETTINGS, 0, 0);
    put((uint8_t[]){0, 4, 0x7f, 0xff, 0xff, 0xff}, 6);
    put_head(4, WINDOW_UPDATE, 0, 0);
    put((uint8_t[]){0x7f, 0xff, 0, 0}, 4);
    for (uint32_t stream = 1; stream < 2 * (uint32_t)streams; stream += 2) {
        size_t at = out_bytes;
        put_head(0, HEADERS, END_HEADERS, stream);
        put_field(":method", "POST");
        put_field(":scheme", "http");
        put_field(":path", "/echo.v1.Echo/Bidi");
        put_field(":authority", "least");
        put_field("te", "trailers");
        put_field("content-type", "application/grpc");
        size_t length = out_bytes - at - 9;
        out[at + 1] = length >> 8;
        out[at + 2] = length;
        for (int each = 0; each < in_flight; each++) put_message(stream, payload_bytes);
    }
    write_out(one->fd);
}

/* Takes what has come and sends it back. */
static void turn(struct connection *one, size_t message_bytes) {
    static uint8_t in[2 * READ_BYTES];
    ssize_t got;
    do {
        memcpy(in, one->part, one->part_bytes);
        got = recv(one->fd, in + one->part_bytes, READ_BYTES, 0);
        reads++;
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) fail("recv");
        size_t bytes = one->part_bytes + got, at = 0;
        while (bytes - at >= 9) {
            uint8_t *head = in + at;
            size_t length = head[0] << 16 | head[1] << 8 | head[2];
            if (bytes - at < 9 + length) break;
            if (head[3] == DATA) {
                put(head, 9 + length);
                messages += length / message_bytes;
            } else if (head[3] == SETTINGS && !(head[4] & ACK)) {
                put_head(0, SETTINGS, ACK, 0);
            } else if (head[3] == RST_STREAM || head[3] == GOAWAY) {
                fprintf(stderr, "frame of type %d\n", head[3]);
                exit(1);
            }
            at += 9 + length;
        }
        one->part_bytes = bytes - at;
        memcpy(one->part, in + at, one->part_bytes);
        if (out_bytes > 0) write_out(one->fd);
    } while (got == READ_BYTES);
}

int main(int count, char **arguments) {
    if (count != 8) {
        fprintf(stderr, "usage: least PORT SERVER_PID CONNECTIONS STREAMS IN_FLIGHT PAYLOAD_BYTES SECONDS\n");
        return 2;
    }
    int connections = atoi(arguments[3]), streams = atoi(arguments[4]), in_flight = atoi(arguments[5]);
    size_t payload_bytes = atoi(arguments[6]);
    size_t message_bytes = payload_bytes + 7 + (payload_bytes > 127);
    clockid_t server;
    if (clock_getcpuclockid(atoi(arguments[2]), &server)) fail("clock_getcpuclockid");
    int epoll = epoll_create1(0);
    struct connection *all = calloc(connections, sizeof *all);
    for (int each = 0; each < connections; each++) {
        open_one(&all[each], atoi(arguments[1]), streams, in_flight, payload_bytes);
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = &all[each]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, all[each].fd, &event);
    }
    double warm = now(CLOCK_MONOTONIC) + 0.5, end = warm + atof(arguments[7]);
    double began = 0, client_began = 0, server_began = 0;
    for (uint64_t waits = 1;; waits++) {
        static struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, 100);
        if (ready == 0 || waits % 64 == 0) {
            double time = now(CLOCK_MONOTONIC);
            if (began == 0 && time >= warm) {
                began = time;
                client_began = now(CLOCK_PROCESS_CPUTIME_ID);
                server_began = now(server);
                messages = reads = 0;
            }
            if (time >= end) {
                double client_s = now(CLOCK_PROCESS_CPUTIME_ID) - client_began;
                double server_s = now(server) - server_began;
                printf("{\"messages_per_s\": %.0f, \"client_ns\": %.1f, \"server_ns\": %.1f, \"per_read\": %.1f}\n",
                       messages / (time - began), 1e9 * client_s / messages, 1e9 * server_s / messages,
                       (double)messages / reads);
                return 0;
            }
        }
        for (int each = 0; each < ready; each++) turn(events[each].data.ptr, message_bytes);
    }
}
