// What the echoes in C that know no library share: a listener on loopback, epoll, the manners of a peer.
//
// In: three functions of the file that includes this one, and a port. Out: serve(), which says the
// address as the first line of stdout and returns when stdin ends. One thread; epoll is level-triggered,
// so a turn may leave bytes in the socket.
#ifndef SERVE_H
#define SERVE_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

struct connection;

// A client is there; what is returned is watched for input. NULL: the client is turned away.
static struct connection *opened(int fd);
// Something happened. False: the connection is over.
static bool turn(struct connection *c, uint32_t events);
// It is over: frees what opened() made. The socket is closed already.
static void closed(struct connection *c);
// Its socket.
static int socket_of(const struct connection *c);

enum { EVENTS_MAX = 256 };

static int epoll_fd, listener_fd;
static bool accepting = true;

static void fail(const char *what) {
    perror(what);
    exit(EXIT_FAILURE);
}

static void watch(struct connection *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, socket_of(c), &event);
}

static void watch_listener(bool accept_now) {
    accepting = accept_now;
    struct epoll_event event = {.events = accept_now ? EPOLLIN : 0, .data.ptr = &listener_fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, listener_fd, &event);
}

static void end_connection(struct connection *c) {
    close(socket_of(c));
    closed(c);
    if (!accepting) watch_listener(true);
}

static void accept_some(void) {
    for (int accepted = 0; accepted < EVENTS_MAX; accepted++) {
        int fd = accept4(listener_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        // Out of descriptors: the listener rests until a connection is closed.
        if (fd < 0 && (errno == EMFILE || errno == ENFILE)) watch_listener(false);
        if (fd < 0) return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        struct connection *c = opened(fd);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (!c) {
            close(fd);
        } else if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) {
            end_connection(c);
        }
    }
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

static void serve(uint16_t port) {
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    listen_on(port);
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
                char ignored[64];
                if (read(STDIN_FILENO, ignored, sizeof ignored) <= 0) return;
            } else if (!turn(who, events[i].events)) {
                end_connection(who);
            }
        }
    }
}

#endif
