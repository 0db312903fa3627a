/* Preloaded into tgtd: while the file $ANTLER_BACKEND_GATE exists, a write to the back end waits,
 * and goes on $ANTLER_BACKEND_LATE_MS after the file is gone. Writes that begin later are not
 * delayed, so that a delayed one lands after them unless somebody waits for it. Each write that
 * waits adds a byte to $ANTLER_BACKEND_GATE.entered, and one to $ANTLER_BACKEND_GATE.left when it
 * is done. While $ANTLER_BACKEND_GATE.reads exists, reads wait for its end. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void note(const char *gate, const char *what)
{
    char path[4096];
    snprintf(path, sizeof path, "%s.%s", gate, what);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd >= 0) {
        if (write(fd, ".", 1) != 1)
            abort();
        close(fd);
    }
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at)
{
    static ssize_t (*next)(int, const void *, size_t, off64_t);
    if (!next)
        next = (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    const char *gate = getenv("ANTLER_BACKEND_GATE");
    if (!gate || access(gate, F_OK) != 0)
        return next(fd, data, bytes, at);
    note(gate, "entered");
    while (access(gate, F_OK) == 0)
        usleep(1000);
    const char *late_ms = getenv("ANTLER_BACKEND_LATE_MS");
    usleep((late_ms ? atoi(late_ms) : 0) * 1000);
    ssize_t written = next(fd, data, bytes, at);
    note(gate, "left");
    return written;
}

ssize_t pread64(int fd, void *data, size_t bytes, off64_t at)
{
    static ssize_t (*next)(int, void *, size_t, off64_t);
    if (!next)
        next = (ssize_t (*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, "pread64");
    const char *gate = getenv("ANTLER_BACKEND_GATE");
    char path[4096];
    snprintf(path, sizeof path, "%s.reads", gate ? gate : "");
    while (gate && access(path, F_OK) == 0)
        usleep(1000);
    return next(fd, data, bytes, at);
}
