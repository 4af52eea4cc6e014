/* Sends a list of buffers through a file descriptor: partial writes, EINTR, EAGAIN, a deadline, and a
 * descriptor that ends the wait. Works on in after a signal: iov[*first..count) always is what has not been
 * sent yet.
 */
#pragma once
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum colo_outlet_kind { COLO_OUTLET_MEMORY, COLO_OUTLET_SOCKET, COLO_OUTLET_PIPE, COLO_OUTLET_FILE };

enum colo_sent {
    COLO_SENT_ALL = 0,
    COLO_SENT_ERROR = -1,      /* *error holds the errno */
    COLO_SENT_DEADLINE = -2,
    COLO_SENT_SIGNAL = -3,     /* let Python run its handlers, then call again */
    COLO_SENT_WOKEN = -4,
};

#define COLO_NO_DEADLINE INT64_MAX
#define COLO_GATHER_MAX 1024   /* Linux's IOV_MAX */

typedef struct colo_outlet {
    int fd;
    int kind;
    int nonblocking;           /* O_NONBLOCK is set: a write never waits by itself */
    int wake_fd;               /* readable: end the wait; -1: none */
    int64_t deadline_ns;       /* CLOCK_MONOTONIC */
} colo_outlet;

static inline int colo_outlet_wait(const colo_outlet *out, int *error)
{
    struct pollfd fds[2] = {{out->fd, POLLOUT, 0}, {out->wake_fd, POLLIN, 0}};
    struct timespec left, *timeout = NULL;
    if (out->deadline_ns != COLO_NO_DEADLINE) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        int64_t ns = out->deadline_ns - ((int64_t)now.tv_sec * 1000000000 + now.tv_nsec);
        if (ns < 0)
            ns = 0;
        left.tv_sec = ns / 1000000000;
        left.tv_nsec = ns % 1000000000;
        timeout = &left;
    }
    int ready = ppoll(fds, out->wake_fd >= 0 ? 2 : 1, timeout, NULL);
    if (ready < 0) {
        *error = errno;
        return errno == EINTR ? COLO_SENT_SIGNAL : COLO_SENT_ERROR;
    }
    if (ready == 0)
        return COLO_SENT_DEADLINE;
    if (out->wake_fd >= 0 && fds[1].revents)
        return COLO_SENT_WOKEN;
    return COLO_SENT_ALL;
}

/* A blocking pipe that is ready takes PIPE_BUF bytes without waiting, and more might wait for ever. */
static inline ssize_t colo_gather_pipe_step(int fd, const struct iovec *iov, size_t count)
{
    struct iovec part[16];
    size_t n = 0, bytes = 0;
    for (; n < 16 && n < count && bytes < PIPE_BUF; n++) {
        part[n] = iov[n];
        if (part[n].iov_len > PIPE_BUF - bytes)
            part[n].iov_len = PIPE_BUF - bytes;
        bytes += part[n].iov_len;
    }
    return writev(fd, part, (int)n);
}

static inline int colo_gather_send(const colo_outlet *out, struct iovec *iov, size_t *first, size_t count,
                                   int *error)
{
    int timed = out->deadline_ns != COLO_NO_DEADLINE || out->wake_fd >= 0;
    int step = out->kind == COLO_OUTLET_PIPE && timed && !out->nonblocking;
    while (*first < count) {
        size_t n = count - *first < COLO_GATHER_MAX ? count - *first : COLO_GATHER_MAX;
        ssize_t sent;
        if (step) {
            int ready = colo_outlet_wait(out, error);
            if (ready != COLO_SENT_ALL)
                return ready;
            sent = colo_gather_pipe_step(out->fd, iov + *first, n);
        } else if (out->kind == COLO_OUTLET_SOCKET) {
            struct msghdr message = {0};
            message.msg_iov = iov + *first;
            message.msg_iovlen = n;
            sent = sendmsg(out->fd, &message, MSG_NOSIGNAL | (timed ? MSG_DONTWAIT : 0));
        } else {
            sent = writev(out->fd, iov + *first, (int)n);
        }
        if (sent < 0) {
            *error = errno;
            if (errno == EINTR)
                return COLO_SENT_SIGNAL;
            if (errno != EAGAIN && errno != EWOULDBLOCK)
                return COLO_SENT_ERROR;
            int ready = colo_outlet_wait(out, error);
            if (ready != COLO_SENT_ALL)
                return ready;
            continue;
        }
        for (size_t left = (size_t)sent; left || (*first < count && !iov[*first].iov_len); ) {
            struct iovec *v = &iov[*first];
            if (left < v->iov_len) {
                v->iov_base = (uint8_t *)v->iov_base + left;
                v->iov_len -= left;
                break;
            }
            left -= v->iov_len;
            ++*first;
        }
    }
    return COLO_SENT_ALL;
}
