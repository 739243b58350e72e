// Drives a TCP echo as loadgen drives a gRPC one: how many messages does a CPU-second of the server carry?
//
// In: the shape of a load. Out, on stdout: messages per second and per server CPU-second (user and system,
// from /proc). A message is as many bytes as a gRPC one of that payload takes in a DATA frame of its own:
// 9 (frame) + 5 (gRPC's prefix) + the protobuf encoding of the bytes. TCP has no streams: a connection has
// streams x in-flight messages under way, and each echo that is whole again releases the next (closed loop).
// Every byte that comes back is compared with what was sent.
//
// usage: drive CONNECTIONS STREAMS IN_FLIGHT PAYLOAD_BYTES [SECONDS [SERVER_CPU DRIVER_CPU]]
//   STREAMS: on each connection. Starts the echo that lies beside it. Warms up for a second.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECTIONS_MAX = 10000,
    MESSAGES_MAX = 1 << 20, // under way on a connection
    PAYLOAD_BYTES_MAX = 4 << 20,
    SECONDS_MAX = 3600,
    WARMUP_SECONDS = 1,
    BUFFER_BYTES = 256 << 10,
    EVENTS_MAX = 256,
    // No power of two, so that bytes which are off by a buffer or a page differ.
    PERIOD = 251,
    FRAME_HEAD_BYTES = 9,
    MESSAGE_PREFIX_BYTES = 5,
};

struct connection {
    int fd;
    uint32_t events;
    uint64_t sent, received; // bytes since it opened
};

// The byte at place N of a connection is pattern[N % PERIOD], so any piece of it lies here in one piece.
static uint8_t pattern[PERIOD + BUFFER_BYTES];
static uint8_t input[BUFFER_BYTES];
static int epoll_fd;

static void fail(const char *what) {
    perror(what);
    exit(EXIT_FAILURE);
}

static void refuse(const char *why) {
    fprintf(stderr, "error: %s\n", why);
    exit(EXIT_FAILURE);
}

static uint64_t number(const char *text, uint64_t min, uint64_t max) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || value < min || value > max) {
        fprintf(stderr, "error: %s: need a number from %llu to %llu\n", text,
                (unsigned long long)min, (unsigned long long)max);
        exit(2);
    }
    return value;
}

// As protobuf encodes `bytes payload = 1`: nothing if empty; else a tag, the length, the bytes.
static uint64_t encoded_bytes(uint64_t payload) {
    if (payload == 0) return 0;
    uint64_t length_bytes = 1;
    for (uint64_t rest = payload >> 7; rest > 0; rest >>= 7) length_bytes++;
    return 1 + length_bytes + payload;
}

// --- The server ---------------------------------------------------------------------------------

struct server {
    pid_t pid;
    int stdin_fd;
    struct sockaddr_in address;
};

static void pin(uint64_t cpu) {
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET((int)cpu, &only);
    if (sched_setaffinity(0, sizeof only, &only)) fail("cannot pin");
}

static struct server start(const char *own_path, const char *cpu) {
    char path[4096];
    const char *slash = strrchr(own_path, '/');
    int folder = slash ? (int)(slash - own_path) : 1;
    snprintf(path, sizeof path, "%.*s/echo", folder, slash ? own_path : ".");
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC)) fail("pipe");
    pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (pid == 0) {
        if (cpu) pin(number(cpu, 0, CPU_SETSIZE - 1));
        dup2(to[0], STDIN_FILENO);
        dup2(from[1], STDOUT_FILENO);
        execl(path, path, "0", (char *)NULL);
        fail(path);
    }
    close(to[0]);
    close(from[1]);
    FILE *said = fdopen(from[0], "r");
    unsigned port;
    if (!said || fscanf(said, "127.0.0.1:%u", &port) != 1) refuse("the echo did not say its address");
    fclose(said);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return (struct server){.pid = pid, .stdin_fd = to[1], .address = address};
}

static void stop(struct server server) {
    int status;
    close(server.stdin_fd);
    if (waitpid(server.pid, &status, 0) != server.pid || !WIFEXITED(status) || WEXITSTATUS(status))
        refuse("the echo did not end well");
}

// User and system time, in ticks. The name before it may hold anything, but ends with the last ')'.
static uint64_t ticks_of(pid_t pid) {
    char path[64], stat[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) fail(path);
    size_t length = fread(stat, 1, sizeof stat - 1, file);
    fclose(file);
    stat[length] = 0;
    unsigned long user, system;
    const char *rest = strrchr(stat, ')');
    if (!rest || sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
                        &system) != 2)
        refuse("the server's CPU time is unknown");
    return user + system;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

// --- The load -----------------------------------------------------------------------------------

struct load {
    uint64_t message_bytes, messages_under_way;
};

static void send_what_may(struct connection *c, const struct load *load) {
    uint64_t whole = c->received / load->message_bytes;
    uint64_t limit = (whole + load->messages_under_way) * load->message_bytes;
    bool is_full = false;
    while (c->sent < limit && !is_full) {
        uint64_t length = limit - c->sent;
        if (length > BUFFER_BYTES) length = BUFFER_BYTES;
        ssize_t sent = send(c->fd, pattern + c->sent % PERIOD, length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) fail("send");
        is_full = sent < (ssize_t)length;
        c->sent += sent > 0 ? (uint64_t)sent : 0;
    }
    uint32_t events = EPOLLIN | (is_full ? EPOLLOUT : 0);
    if (events == c->events) return;
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event)) fail("epoll_ctl");
    c->events = events;
}

static void read_and_compare(struct connection *c) {
    ssize_t length = recv(c->fd, input, sizeof input, 0);
    if (length == 0) refuse("the echo closed a connection");
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (length < 0) fail("recv");
    if (c->received + (uint64_t)length > c->sent) refuse("more came back than was sent");
    if (memcmp(input, pattern + c->received % PERIOD, (size_t)length) != 0)
        refuse("what came back is not what was sent");
    c->received += (uint64_t)length;
}

static void run_until(double end, const struct load *load) {
    while (now() < end) {
        struct epoll_event events[EVENTS_MAX];
        int count = epoll_wait(epoll_fd, events, EVENTS_MAX, 10);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & ~(uint32_t)EPOLLOUT) read_and_compare(c);
            send_what_may(c, load);
        }
    }
}

static uint64_t messages_of(const struct connection *connections, uint64_t count,
                            const struct load *load) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) sum += connections[i].received / load->message_bytes;
    return sum;
}

static void open_connection(struct connection *c, const struct sockaddr_in *address) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)address, sizeof *address))
        fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (fcntl(c->fd, F_SETFL, O_NONBLOCK)) fail("fcntl");
    c->events = EPOLLIN;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event)) fail("epoll_ctl");
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6 && argc != 8) {
        fputs("usage: drive CONNECTIONS STREAMS IN_FLIGHT PAYLOAD_BYTES [SECONDS [SERVER_CPU "
              "DRIVER_CPU]]\n", stderr);
        return 2;
    }
    uint64_t connection_count = number(argv[1], 1, CONNECTIONS_MAX);
    uint64_t streams = number(argv[2], 1, MESSAGES_MAX);
    uint64_t in_flight = number(argv[3], 1, MESSAGES_MAX / streams);
    uint64_t payload = number(argv[4], 0, PAYLOAD_BYTES_MAX);
    uint64_t seconds = argc > 5 ? number(argv[5], 1, SECONDS_MAX) : 3;
    struct load load = {
        .message_bytes = FRAME_HEAD_BYTES + MESSAGE_PREFIX_BYTES + encoded_bytes(payload),
        .messages_under_way = streams * in_flight,
    };
    for (size_t i = 0; i < sizeof pattern; i++) pattern[i] = (uint8_t)(i % PERIOD);

    struct server server = start(argv[0], argc > 6 ? argv[6] : NULL);
    if (argc > 7) pin(number(argv[7], 0, CPU_SETSIZE - 1));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct connection *connections = calloc(connection_count, sizeof *connections);
    if (epoll_fd < 0 || !connections) fail("cannot begin");
    for (uint64_t i = 0; i < connection_count; i++) open_connection(&connections[i], &server.address);
    for (uint64_t i = 0; i < connection_count; i++) send_what_may(&connections[i], &load);

    run_until(now() + WARMUP_SECONDS, &load);
    uint64_t messages = messages_of(connections, connection_count, &load);
    uint64_t ticks = ticks_of(server.pid);
    double begin = now();
    run_until(begin + (double)seconds, &load);
    double passed = now() - begin;
    ticks = ticks_of(server.pid) - ticks;
    messages = messages_of(connections, connection_count, &load) - messages;
    for (uint64_t i = 0; i < connection_count; i++) close(connections[i].fd);
    free(connections);
    stop(server);

    double cpu_seconds = (double)ticks / (double)sysconf(_SC_CLK_TCK);
    printf("%llu bytes a message, %.0f messages/s", (unsigned long long)load.message_bytes,
           (double)messages / passed);
    if (cpu_seconds > 0) printf(", %.0f per server CPU-second", (double)messages / cpu_seconds);
    puts("");
    return EXIT_SUCCESS;
}
