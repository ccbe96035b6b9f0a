/* Loaded before libc: sees every call that changes files below one folder, and kills or refuses one of them.
 *
 * Python, Rust (tokenizers, safetensors) and C++ (Arrow, torch) all come through here. Calls that libc makes to itself,
 * such as the writes of fwrite, do not; the opening of their files does. Nor does the rename at the end of a file of
 * safetensors, which Rust asks of the kernel itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define PATH 4096
#define NEXT(result, name, ...)                                       \
    static result (*next)(__VA_ARGS__);                               \
    if (!next) next = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

enum { RECORD, KILL, FAIL };

static char folder[PATH], current[PATH], wanted[PATH + 32];
static int mode, occurrence, journal = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Watch `below` (absolute); kill or refuse the call number `number` (from 1) of `call`, such as "unlink run/a.json". */
void watch(const char *below, int what, const char *call, int number, int file_descriptor) {
    snprintf(folder, PATH, "%s/", below);
    if (!getcwd(current, PATH)) current[0] = 0;
    snprintf(wanted, sizeof wanted, "%s", call);
    mode = what, occurrence = number, journal = file_descriptor;
}

static void of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH - 1);
    path[length < 0 ? 0 : length] = 0;
}

static void resolve(int directory, const char *name, char *path) {
    char base[PATH] = "";
    if (name[0] == '/') {
        snprintf(path, PATH, "%s", name);
        return;
    }
    if (directory == AT_FDCWD) snprintf(base, PATH, "%s", current);
    else of_descriptor(directory, base);
    if (snprintf(path, PATH, "%s/%s", base, name) >= PATH) path[0] = 0;
}

/* safetensors writes to .tmpXXXXXX, by chance another name each time; it is known as .tmp here. */
static void forget_random_name(char *line, int *length) {
    char *name = strstr(line, "/.tmp");
    if (!name || name + 12 != line + *length) return;
    strcpy(name + 5, "\n");
    *length -= 6;
}

/* Note the call. 1 where it is the one to be stopped at, unless that has killed the process already. */
static int meets(const char *call, const char *path) {
    char line[PATH + 32];
    if (!folder[0] || strncmp(path, folder, strlen(folder))) return 0;
    int length = snprintf(line, sizeof line, "%s %s\n", call, path + strlen(folder));
    if (length >= (int)sizeof line) return 0;
    forget_random_name(line, &length);
    pthread_mutex_lock(&lock);
    syscall(SYS_write, journal, line, length);
    line[length - 1] = 0;
    int met = mode != RECORD && !strcmp(line, wanted) && --occurrence == 0;
    pthread_mutex_unlock(&lock);
    return met;
}

static int stops(const char *call, const char *path) {
    if (!meets(call, path)) return 0;
    if (mode == KILL) kill(getpid(), SIGKILL);
    errno = ENOSPC;
    return 1;
}

static int stops_at(const char *call, int directory, const char *name) {
    char path[PATH];
    if (!folder[0]) return 0;
    resolve(directory, name, path);
    return stops(call, path);
}

static int stops_on(const char *call, int descriptor) {
    char path[PATH];
    if (!folder[0]) return 0;
    of_descriptor(descriptor, path);
    return stops(call, path);
}

static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

#define OPEN(name)                                                                   \
    int name(const char *path, int flags, ...) {                                     \
        NEXT(int, #name, const char *, int, ...);                                    \
        va_list rest;                                                                \
        va_start(rest, flags);                                                       \
        mode_t bits = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;    \
        va_end(rest);                                                                \
        if (changes(flags) && stops_at("open", AT_FDCWD, path)) return -1;           \
        return next(path, flags, bits);                                              \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                 \
    int name(int directory, const char *path, int flags, ...) {                      \
        NEXT(int, #name, int, const char *, int, ...);                               \
        va_list rest;                                                                \
        va_start(rest, flags);                                                       \
        mode_t bits = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;    \
        va_end(rest);                                                                \
        if (changes(flags) && stops_at("open", directory, path)) return -1;          \
        return next(directory, path, flags, bits);                                   \
    }
OPENAT(openat)
OPENAT(openat64)

#define CREAT(name)                                                \
    int name(const char *path, mode_t bits) {                      \
        NEXT(int, #name, const char *, mode_t);                    \
        return stops_at("open", AT_FDCWD, path) ? -1 : next(path, bits); \
    }
CREAT(creat)
CREAT(creat64)

#define FOPEN(name)                                                                         \
    FILE *name(const char *path, const char *how) {                                         \
        NEXT(FILE *, #name, const char *, const char *);                                    \
        if (strpbrk(how, "wa+") && stops_at("open", AT_FDCWD, path)) return NULL;           \
        return next(path, how);                                                             \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define ON_PATH(name, call)                                        \
    int name(const char *path) {                                   \
        NEXT(int, #name, const char *);                            \
        return stops_at(call, AT_FDCWD, path) ? -1 : next(path);   \
    }
ON_PATH(unlink, "unlink")
ON_PATH(remove, "unlink")
ON_PATH(rmdir, "rmdir")

int unlinkat(int directory, const char *path, int flags) {
    NEXT(int, "unlinkat", int, const char *, int);
    return stops_at(flags & AT_REMOVEDIR ? "rmdir" : "unlink", directory, path) ? -1 : next(directory, path, flags);
}

int mkdir(const char *path, mode_t bits) {
    NEXT(int, "mkdir", const char *, mode_t);
    return stops_at("mkdir", AT_FDCWD, path) ? -1 : next(path, bits);
}

int mkdirat(int directory, const char *path, mode_t bits) {
    NEXT(int, "mkdirat", int, const char *, mode_t);
    return stops_at("mkdir", directory, path) ? -1 : next(directory, path, bits);
}

/* A rename and a link are known by the name that they make. */
#define TWO_PATHS(name, call)                                          \
    int name(const char *from, const char *to) {                       \
        NEXT(int, #name, const char *, const char *);                  \
        return stops_at(call, AT_FDCWD, to) ? -1 : next(from, to);     \
    }
TWO_PATHS(rename, "rename")
TWO_PATHS(link, "link")
TWO_PATHS(symlink, "link")

int renameat(int here, const char *from, int there, const char *to) {
    NEXT(int, "renameat", int, const char *, int, const char *);
    return stops_at("rename", there, to) ? -1 : next(here, from, there, to);
}

int renameat2(int here, const char *from, int there, const char *to, unsigned flags) {
    NEXT(int, "renameat2", int, const char *, int, const char *, unsigned);
    return stops_at("rename", there, to) ? -1 : next(here, from, there, to, flags);
}

#define TRUNCATE(name)                                                           \
    int name(const char *path, off_t length) {                                   \
        NEXT(int, #name, const char *, off_t);                                   \
        return stops_at("truncate", AT_FDCWD, path) ? -1 : next(path, length);   \
    }
TRUNCATE(truncate)
TRUNCATE(truncate64)

#define FTRUNCATE(name)                                                          \
    int name(int descriptor, off_t length) {                                     \
        NEXT(int, #name, int, off_t);                                            \
        return stops_on("truncate", descriptor) ? -1 : next(descriptor, length); \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

#define FSYNC(name)                                               \
    int name(int descriptor) {                                    \
        NEXT(int, #name, int);                                    \
        return stops_on("fsync", descriptor) ? -1 : next(descriptor); \
    }
FSYNC(fsync)
FSYNC(fdatasync)

/* A process that is killed while it writes leaves the first half. */
static int stops_write(int descriptor, const void *bytes, size_t size) {
    char path[PATH];
    if (!folder[0] || descriptor <= 2) return 0;
    of_descriptor(descriptor, path);
    if (!meets("write", path)) return 0;
    if (mode == KILL) {
        syscall(SYS_write, descriptor, bytes, size / 2);
        kill(getpid(), SIGKILL);
    }
    errno = ENOSPC;
    return 1;
}

ssize_t write(int descriptor, const void *bytes, size_t size) {
    NEXT(ssize_t, "write", int, const void *, size_t);
    return stops_write(descriptor, bytes, size) ? -1 : next(descriptor, bytes, size);
}

#define PWRITE(name)                                                                                \
    ssize_t name(int descriptor, const void *bytes, size_t size, off_t at) {                        \
        NEXT(ssize_t, #name, int, const void *, size_t, off_t);                                     \
        return stops_write(descriptor, bytes, size) ? -1 : next(descriptor, bytes, size, at);       \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int descriptor, const struct iovec *parts, int number) {
    NEXT(ssize_t, "writev", int, const struct iovec *, int);
    return descriptor > 2 && stops_on("write", descriptor) ? -1 : next(descriptor, parts, number);
}

#define SENDFILE(name)                                                                          \
    ssize_t name(int to, int from, off_t *at, size_t size) {                                    \
        NEXT(ssize_t, #name, int, int, off_t *, size_t);                                        \
        return stops_on("write", to) ? -1 : next(to, from, at, size);                           \
    }
SENDFILE(sendfile)
SENDFILE(sendfile64)

ssize_t copy_file_range(int from, off_t *here, int to, off_t *there, size_t size, unsigned flags) {
    NEXT(ssize_t, "copy_file_range", int, off_t *, int, off_t *, size_t, unsigned);
    return stops_on("write", to) ? -1 : next(from, here, to, there, size, flags);
}
