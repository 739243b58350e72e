// The limit of whatever speaks TCP on one thread: bytes in, the same bytes out.
//
// In: any bytes on a loopback port. Out: those bytes. A turn of a connection is one read and one write.
// Knows no frame, no stream and no message. Bounds: nothing is read from a client that does not take what
// is written, so a connection holds at most one read.
//
// usage: echo PORT (0: a free one). Says its address on stdout; serves until its stdin ends.
#define _GNU_SOURCE
#include "../c/serve.h"

// As the other servers in C read.
enum { READ_BYTES_MAX = 256 << 10 };

struct connection {
    int fd;
    uint8_t *unsent; // what the socket did not take; else NULL
    size_t unsent_begin, unsent_end;
};

// Shared by all connections, so an idle one owns none.
static uint8_t input[READ_BYTES_MAX];

static bool echo(struct connection *c) {
    ssize_t length = recv(c->fd, input, sizeof input, 0);
    if (length == 0) return false;
    if (length < 0) return errno == EAGAIN || errno == EINTR;
    ssize_t sent = send(c->fd, input, (size_t)length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return false;
    size_t left = (size_t)(length - (sent > 0 ? sent : 0));
    if (left == 0) return true;
    if (!(c->unsent = malloc(left))) return false;
    memcpy(c->unsent, input + ((size_t)length - left), left);
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
    (void)events;
    return c->unsent ? write_unsent(c) : echo(c);
}

static int socket_of(const struct connection *c) {
    return c->fd;
}

static struct connection *opened(int fd) {
    struct connection *c = calloc(1, sizeof *c);
    if (c) c->fd = fd;
    return c;
}

static void closed(struct connection *c) {
    free(c->unsent);
    free(c);
}

int main(int argc, char **argv) {
    serve(argc > 1 ? (uint16_t)strtoul(argv[1], NULL, 10) : 0);
    return EXIT_SUCCESS;
}
