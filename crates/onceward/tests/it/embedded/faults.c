/* Preloaded into a process, this makes its journals fail on demand. The file that FAULTS names says how, by its first
   letter: s fails each sync, w each write as a full disk does, h holds each sync until the letter is another, and tells so
   on the standard output. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_fsync)(int), (*real_fdatasync)(int);

__attribute__((constructor)) static void find_the_real_ones(void) {
    real_write = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
}

static int is_journal(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path);
    return len > 4 && memcmp(path + len - 4, ".jnl", 4) == 0;
}

static char fault(void) {
    const char *path = getenv("FAULTS");
    char letter = 0;
    int fd = path ? open(path, O_RDONLY) : -1;
    if (fd >= 0) {
        if (read(fd, &letter, 1) != 1) letter = 0;
        close(fd);
    }
    return letter;
}

static int sync_or_fail(int fd, int (*real)(int)) {
    if (!is_journal(fd)) return real(fd);
    if (fault() == 'h') {
        real_write(1, "> held\n", 7);
        while (fault() == 'h') usleep(1000);
    }
    if (fault() == 's') {
        errno = EIO;
        return -1;
    }
    return real(fd);
}

int fsync(int fd) { return sync_or_fail(fd, real_fsync); }
int fdatasync(int fd) { return sync_or_fail(fd, real_fdatasync); }

ssize_t write(int fd, const void *bytes, size_t len) {
    if (is_journal(fd) && fault() == 'w') {
        errno = ENOSPC;
        return -1;
    }
    return real_write(fd, bytes, len);
}
