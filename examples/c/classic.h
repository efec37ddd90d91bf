/* What the examples on classic System V segments share: a segment by its key, and signals that end a program. */
#ifndef CLASSIC_H
#define CLASSIC_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/shm.h>

/* Some programs here have no use for one or the other. */
#define MAYBE_UNUSED __attribute__((unused))

static volatile sig_atomic_t stopped, waits_on = -1;

static void stop(int number) {
    int saved = errno;
    (void)number;
    stopped = 1;
    if (waits_on >= 0)
        fcntl(waits_on, F_SETFL, O_NONBLOCK);
    errno = saved;
}

/* SIGINT and SIGTERM set `stopped` and interrupt what waits (EINTR), since there is no SA_RESTART. One that comes right before
 * a read from `waits_on`, when there is nothing to interrupt yet, has it not wait (EAGAIN). */
MAYBE_UNUSED static void catch_signals(void) {
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/*
 * Attach the segment with the key ftok(path, project), of at least `bytes` bytes; make it if there is none. It does not
 * matter who made it: another of these programs, or shmd, when a client asked for it with the same ftok=(path, project).
 * A new segment is all zeros, in whoever made it first. *madep (may be NULL): it was us.
 */
MAYBE_UNUSED static void *attach_by_key(const char *path, char project, size_t bytes, int *idp, bool *madep) {
    key_t key = ftok(path, project);
    if (key == -1)
        die(path);
    int id = shmget(key, bytes, IPC_CREAT | IPC_EXCL | 0600);
    bool made = id != -1;
    if (id == -1 && errno == EEXIST)
        id = shmget(key, bytes, 0);
    if (id == -1)
        die("shmget"); /* EINVAL: it exists, and is smaller; EACCES: it is somebody else's */
    void *memory = shmat(id, NULL, 0);
    if (memory == (void *)-1)
        die("shmat");
    *idp = id;
    if (madep != NULL)
        *madep = made;
    return memory;
}

#endif
