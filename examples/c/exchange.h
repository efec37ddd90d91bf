/*
 * Where server and client meet: a segment of slots, one for each request under way, and a FIFO for each side to wake the
 * other. A slot's owner word is the pid of the client that has it; its state says whose turn it is.
 *
 *     client:  owner 0 -> pid ── text ── REQUEST ── byte into FILE.server ── read FILE.<slot> ── reply ── owner 0
 *     server:                      read FILE.server ── text -> reply ── REPLY ── byte into FILE.<slot>
 */
#ifndef EXCHANGE_H
#define EXCHANGE_H

#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include "classic.h"

#define SLOTS 16
#define TEXT_BYTES 248

enum state { IDLE, REQUEST, REPLY };

struct slot {
    _Atomic uint32_t owner;
    _Atomic uint32_t state; /* stored with release after the text is written, loaded with acquire before it is read */
    char text[TEXT_BYTES];
};

struct exchange {
    struct slot slots[SLOTS];
};

/* FILE.server, or FILE.<slot>. */
static void fifo_path(char path[PATH_MAX], const char *file, int slot) {
    int size = slot < 0 ? snprintf(path, PATH_MAX, "%s.server", file) : snprintf(path, PATH_MAX, "%s.%d", file, slot);
    if (size >= PATH_MAX) {
        errno = ENAMETOOLONG;
        die(file);
    }
}

/* Our own FIFO. Opened for both ends, so that reading waits instead of seeing an end when the last writer closes. */
static int make_fifo(const char *path) {
    if (mkfifo(path, 0600) != 0 && errno != EEXIST)
        die(path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd == -1)
        die(path);
    return fd;
}

/* Write one byte into somebody else's. False: nobody reads it (ENXIO), or there is none (ENOENT). */
static bool wake(const char *path, unsigned char byte) {
    int fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd == -1)
        return false;
    bool woken = write(fd, &byte, 1) == 1;
    close(fd);
    return woken;
}

#endif
