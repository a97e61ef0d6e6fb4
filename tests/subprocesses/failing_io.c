/* Loaded before libc: fails chosen writes to the files of one database, or kills the process there.
 *
 * FAILING_IO names a file that is mapped as `struct control`, which failing_io.py fills in. One
 * rule is in force at a time: of its kinds of calls it lets `skip` pass and then fails `times` with
 * `error`, or kills the process where that is 0; after that it is the next rule's turn.
 */
#define _GNU_SOURCE
#define _LARGEFILE64_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITES = 1, SYNCS = 2, SIZES = 4, REMOVALS = 8, RULES = 4 };
struct rule { int kinds, skip, times, error; };
struct control { int failed; struct rule rules[RULES]; };
static struct control *control;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FAILING_IO");
    int file = path ? open(path, O_RDWR) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) control = mapped;
}

static int fails(const char *path, int kind) {
    if (!control || !strstr(path, "/history.db")) return 0;
    for (struct rule *rule = control->rules; rule < control->rules + RULES; rule++) {
        if (!rule->times) continue;
        if (!(rule->kinds & kind)) return 0;
        if (rule->skip) { rule->skip--; return 0; }
        rule->times--;
        control->failed++;
        if (!rule->error) kill(getpid(), SIGKILL);
        errno = rule->error;
        return 1;
    }
    return 0;
}

static int file_fails(int file, int kind) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 32);
    if (length < 0) return 0;
    path[length] = 0;
    struct stat found;
    if (kind == SYNCS && !fstat(file, &found) && S_ISDIR(found.st_mode)) strcat(path, "/history.db");
    return fails(path, kind);
}

#define HOOK(type, name, failing, params, args) \
    type name params { \
        static type (*real) params; \
        if (!real) real = (type (*) params)dlsym(RTLD_NEXT, #name); \
        return failing ? -1 : real args; \
    }
HOOK(ssize_t, write, file_fails(f, WRITES), (int f, const void *b, size_t n), (f, b, n))
HOOK(ssize_t, pwrite, file_fails(f, WRITES), (int f, const void *b, size_t n, off_t o), (f, b, n, o))
HOOK(ssize_t, pwrite64, file_fails(f, WRITES), (int f, const void *b, size_t n, off64_t o), (f, b, n, o))
HOOK(int, fsync, file_fails(f, SYNCS), (int f), (f))
HOOK(int, fdatasync, file_fails(f, SYNCS), (int f), (f))
HOOK(int, ftruncate, file_fails(f, SIZES), (int f, off_t n), (f, n))
HOOK(int, ftruncate64, file_fails(f, SIZES), (int f, off64_t n), (f, n))
HOOK(int, unlink, fails(p, REMOVALS), (const char *p), (p))
