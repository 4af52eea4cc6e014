/* Reading from and writing to a file descriptor with deadlines, EINTR, half-closed and reset peers handled in one place.
 *
 * Non-negative results are byte counts (0 from a read: the peer ended). Negative ones are IO_* below or -errno. */
#pragma once
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    IO_DEADLINE = -100001, /* the phase's absolute deadline passed */
    IO_IDLE = -100002,     /* not a byte moved for longer than idle_ns */
    IO_WOKEN = -100003     /* the wake descriptor became readable */
};

typedef struct {
    int fd;
    int wake_fd;         /* -1: none */
    int is_socket;
    int is_tcp;
    int64_t deadline_ns; /* absolute, CLOCK_MONOTONIC; 0: none */
    int64_t idle_ns;     /* relative; 0: none */
} colo_io;

static inline int64_t colo_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A sender that writes a checkpoint as several small segments waits for our ACK between them (Nagle); with ACKs
 * delayed that is 40 ms of its VM's pause. The kernel drops quick-ACK mode by itself, so it is set again each time. */
static inline void colo_quickack(const colo_io *io)
{
    if (io->is_tcp) {
        int one = 1;
        setsockopt(io->fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
    }
}

/* Wait until fd is ready for `events`. 0: ready. `until_ns` (absolute, 0: none) is the caller's own limit: IO_IDLE. */
static inline int colo_wait(const colo_io *io, short events, int64_t until_ns)
{
    for (;;) {
        struct pollfd p[2] = {{io->fd, events, 0}, {io->wake_fd, POLLIN, 0}};
        struct timespec left, *timeout = NULL;
        int64_t end = until_ns;
        if (io->deadline_ns && (!end || io->deadline_ns < end))
            end = io->deadline_ns;
        if (end) {
            int64_t ns = end - colo_now_ns();
            if (ns < 0)
                ns = 0;
            left.tv_sec = ns / 1000000000;
            left.tv_nsec = ns % 1000000000;
            timeout = &left;
        }
        int n = ppoll(p, io->wake_fd >= 0 ? 2 : 1, timeout, NULL);
        if (n < 0) {
            if (errno == EINTR)
                return -EINTR; /* the caller lets Python see its signals, then waits again */
            return -errno;
        }
        if (io->wake_fd >= 0 && p[1].revents)
            return IO_WOKEN;
        if (p[0].revents)
            return 0;
        if (n == 0)
            return io->deadline_ns && colo_now_ns() >= io->deadline_ns ? IO_DEADLINE : IO_IDLE;
    }
}

static inline ssize_t colo_read_some(const colo_io *io, void *to, size_t n)
{
    /* Checked on entry too: a peer that keeps a byte ready at all times must not outrun its deadline. */
    if (io->deadline_ns && colo_now_ns() >= io->deadline_ns)
        return IO_DEADLINE;
    int64_t until = io->idle_ns ? colo_now_ns() + io->idle_ns : 0;
    for (;;) {
        ssize_t got;
        if (io->is_socket) {
            got = recv(io->fd, to, n, MSG_DONTWAIT);
        } else {
            int ready = colo_wait(io, POLLIN, until);
            if (ready < 0)
                return ready;
            got = read(io->fd, to, n);
        }
        if (got >= 0) {
            colo_quickack(io);
            return got;
        }
        if (errno == EINTR)
            return -EINTR;
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            return -errno;
        colo_quickack(io);
        int ready = colo_wait(io, POLLIN, until);
        if (ready < 0)
            return ready;
    }
}

/* Write all of iov[0..count); the array is consumed. Returns 0 or a negative code; *done counts the bytes written. */
static inline int colo_write_all(const colo_io *io, struct iovec *iov, int count, uint64_t *done)
{
    while (count > 0) {
        ssize_t put;
        int batch = count < IOV_MAX ? count : IOV_MAX;
        if (io->is_socket) {
            struct msghdr m = {.msg_iov = iov, .msg_iovlen = (size_t)batch};
            put = sendmsg(io->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
        } else {
            put = writev(io->fd, iov, batch);
        }
        if (put < 0) {
            if (errno == EINTR)
                return -EINTR;
            if (errno != EAGAIN && errno != EWOULDBLOCK)
                return -errno;
            int ready = colo_wait(io, POLLOUT, io->idle_ns ? colo_now_ns() + io->idle_ns : 0);
            if (ready < 0)
                return ready;
            continue;
        }
        *done += (uint64_t)put;
        while (count > 0 && (size_t)put >= iov->iov_len) {
            put -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        if (count > 0) {
            iov->iov_base = (char *)iov->iov_base + put;
            iov->iov_len -= (size_t)put;
        }
    }
    return 0;
}
