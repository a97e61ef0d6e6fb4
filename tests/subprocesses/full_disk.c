/* Loaded before libc: while the file that FULL_DISK names is there, no file under base/ may grow.
 *
 * As on a disk without room: what has its place already may still be written over.
 */
#define _GNU_SOURCE
#define _LARGEFILE64_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int grows(int file, off_t end) {
    char link[64], path[4096];
    struct stat now;
    const char *sign = getenv("FULL_DISK");
    if (!sign || access(sign, F_OK)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, "/base/") && !fstat(file, &now) && end > now.st_size;
}

static off_t total(const struct iovec *parts, int count) {
    off_t size = 0;
    while (count--) size += parts++->iov_len;
    return size;
}

#define HOOK(type, name, end, refused, params, args) \
    type name params { \
        static type (*real) params; \
        if (!real) real = (type (*) params)dlsym(RTLD_NEXT, #name); \
        if (!grows(f, end)) return real args; \
        errno = ENOSPC; \
        return refused; \
    }
HOOK(ssize_t, pwrite, o + n, -1, (int f, const void *b, size_t n, off_t o), (f, b, n, o))
HOOK(ssize_t, pwrite64, o + n, -1, (int f, const void *b, size_t n, off64_t o), (f, b, n, o))
HOOK(ssize_t, pwritev, o + total(v, c), -1, (int f, const struct iovec *v, int c, off_t o), (f, v, c, o))
HOOK(ssize_t, pwritev64, o + total(v, c), -1, (int f, const struct iovec *v, int c, off64_t o), (f, v, c, o))
HOOK(int, posix_fallocate, o + n, ENOSPC, (int f, off_t o, off_t n), (f, o, n))
HOOK(int, posix_fallocate64, o + n, ENOSPC, (int f, off64_t o, off64_t n), (f, o, n))
