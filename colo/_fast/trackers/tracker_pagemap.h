/* Linux's PAGEMAP_SCAN (6.7) and the userfaultfd features it needs. The numbers are the kernel's ABI; they
 * are written out because the headers of older distributions lack them. */
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

struct colo_scan_region { uint64_t start, end, categories; };

struct colo_scan_request {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
_Static_assert(sizeof(struct colo_scan_request) == 96, "the kernel's struct pm_scan_arg has 96 bytes");

struct colo_uffd_api { uint64_t api, features, ioctls; };
struct colo_uffd_range { uint64_t start, length; };
struct colo_uffd_register { struct colo_uffd_range range; uint64_t mode, ioctls; };
struct colo_uffd_protect { struct colo_uffd_range range; uint64_t mode; };

#define COLO_PAGEMAP_SCAN _IOWR('f', 16, struct colo_scan_request)
#define COLO_SCAN_WP_MATCHING 1ULL
#define COLO_SCAN_CHECK_WPASYNC 2ULL
#define COLO_PAGE_IS_WRITTEN 2ULL

#define COLO_UFFD_IOC 0xAA
#define COLO_UFFD_NEW _IO(COLO_UFFD_IOC, 0x00)
#define COLO_UFFD_API _IOWR(COLO_UFFD_IOC, 0x3F, struct colo_uffd_api)
#define COLO_UFFD_REGISTER _IOWR(COLO_UFFD_IOC, 0x00, struct colo_uffd_register)
#define COLO_UFFD_UNREGISTER _IOR(COLO_UFFD_IOC, 0x01, struct colo_uffd_range)
#define COLO_UFFD_WRITEPROTECT _IOWR(COLO_UFFD_IOC, 0x06, struct colo_uffd_protect)
#define COLO_UFFD_USER_MODE_ONLY 1
#define COLO_UFFD_MODE_WP 2ULL
#define COLO_UFFD_PAGEFAULT_FLAG_WP (1ULL << 0)
#define COLO_UFFD_WP_HUGETLBFS_SHMEM (1ULL << 12)
#define COLO_UFFD_WP_UNPOPULATED (1ULL << 13)
#define COLO_UFFD_WP_ASYNC (1ULL << 15)
#define COLO_UFFD_FEATURES (COLO_UFFD_PAGEFAULT_FLAG_WP | COLO_UFFD_WP_HUGETLBFS_SHMEM \
                            | COLO_UFFD_WP_UNPOPULATED | COLO_UFFD_WP_ASYNC)

/* A userfaultfd, not yet set up, or -errno. Write protection that the kernel lifts by itself needs no
 * handling of kernel-mode faults, so the form open to everyone comes first; the device is for sandboxes
 * that close the system call. */
static inline int colo_uffd_open(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | COLO_UFFD_USER_MODE_ONLY);
    if (fd < 0 && errno == EINVAL) /* before Linux 5.11 */
        fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0)
        return fd;
    int error = errno;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return -error;
    fd = ioctl(device, COLO_UFFD_NEW, O_CLOEXEC | O_NONBLOCK | COLO_UFFD_USER_MODE_ONLY);
    error = errno;
    close(device);
    return fd < 0 ? -error : fd;
}

/* What the kernel has of COLO_UFFD_FEATURES into *has, from a throw-away descriptor; 0 or -errno. */
static inline int colo_uffd_features(int fd, uint64_t *has)
{
    struct colo_uffd_api api = {COLO_UFFD_IOC, 0, 0};
    if (ioctl(fd, COLO_UFFD_API, &api))
        return -errno;
    *has = api.features & COLO_UFFD_FEATURES;
    return 0;
}

static inline int colo_uffd_setup(int fd)
{
    struct colo_uffd_api api = {COLO_UFFD_IOC, COLO_UFFD_FEATURES, 0};
    return ioctl(fd, COLO_UFFD_API, &api) ? -errno : 0;
}

static inline int colo_uffd_register(int fd, uint64_t low, uint64_t high)
{
    struct colo_uffd_register range = {{low, high - low}, COLO_UFFD_MODE_WP, 0};
    return ioctl(fd, COLO_UFFD_REGISTER, &range) ? -errno : 0;
}

static inline int colo_uffd_unregister(int fd, uint64_t low, uint64_t high)
{
    struct colo_uffd_range range = {low, high - low};
    return ioctl(fd, COLO_UFFD_UNREGISTER, &range) ? -errno : 0;
}

static inline int colo_uffd_protect(int fd, uint64_t low, uint64_t high)
{
    struct colo_uffd_protect range = {{low, high - low}, 1};
    return ioctl(fd, COLO_UFFD_WRITEPROTECT, &range) ? -errno : 0;
}

/* Regions written since they were protected last, from *low on, protecting them again in the same walk of
 * the page tables. Moves *low to where the walk ended. Returns the regions, or -errno. */
static inline long colo_scan_written(int pagemap, uint64_t *low, uint64_t high,
                                     struct colo_scan_region *regions, size_t room)
{
    struct colo_scan_request request = {
        .size = sizeof request, .flags = COLO_SCAN_WP_MATCHING | COLO_SCAN_CHECK_WPASYNC,
        .start = *low, .end = high,
        .vec = (uint64_t)(uintptr_t)regions, .vec_len = room,
        /* exactly these masks: the kernel has a fast walk for them, which also reports discarded private
         * pages */
        .category_mask = COLO_PAGE_IS_WRITTEN, .return_mask = COLO_PAGE_IS_WRITTEN,
    };
    long got = ioctl(pagemap, COLO_PAGEMAP_SCAN, &request);
    if (got < 0)
        return -errno;
    *low = request.walk_end;
    return got;
}
