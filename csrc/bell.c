/*
 * Bells: who sleeps, and how to wake them.
 *
 * The counters, which models/bell.pml in the docs checks: a sleeper adds one to `armed` and then looks once more at what
 * it waits for; a waker changes that (commits, or moves its cursor) and then compares `armed` with `rung`. If they differ
 * it remembers `armed`, rings, and stores what it remembered. Each side writes its own word and then reads the other's,
 * all sequentially consistent, so one of them always sees the other. A waker that dies in between leaves the counters
 * different, and the next one rings.
 *
 * An eventfd is one bell for all. A FIFO is one sleeper's own, so a waker must know whose to write to (models/fifo.pml):
 * a sleeper sets its mark before it arms, so that whoever sees it armed sees its mark. The waker writes a byte and only
 * then clears the mark, by compare-and-swap: killed in between, it leaves a mark that costs a second byte; the other way
 * round it would leave a sleeper whom nobody rings for. Every sleep has a mark of its own, or a slow waker would clear
 * that of a sleep it never rang for. The sleeper empties its FIFO before it looks at what it waits for.
 *
 *     sleeper:  mark = m ── armed++ ── look ── sleep ── drain ── look
 *     waker:    commit ── armed != rung? ── for each mark: write, mark == m ? 0 ── rung
 *
 * Opening a FIFO takes a descriptor, and whoever rings may have none left, nobody after it, and a sleeper that waits for
 * ever. So a child that shares our memory, but not our descriptors, gives up one of its own and rings for us.
 *
 * Marks lie in the ctl, which every participant may write: a hostile one can spoil wake-ups with them as with `armed`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "failpoint.h"
#include "shmd.h"

struct shmd_bell shmd_bell_of(const struct shmd_log *log, int fd) {
    return (struct shmd_bell){fd, log->flags & SHMD_FLAG_FIFO ? SHMD_BELL_FIFO : SHMD_BELL_EVENTFD};
}

void shmd_fifo_name(char name[SHMD_FIFO_NAME_BYTES], enum shmd_sleepers who, uint32_t number) {
    char digits[10];
    unsigned count = 0;
    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    *name++ = who == SHMD_READERS ? 'r' : 'p';
    while (count > 0)
        *name++ = digits[--count];
    *name = 0;
}

/* Writing 0 to an eventfd of value 1 wakes all, never blocks, never overflows. */
static void write_eventfd(int fd) {
    static const uint64_t nothing = 0;
    /* Failing means that the descriptor is no bell (any more): then nobody sleeps on it. */
    ssize_t written = write(fd, &nothing, sizeof nothing);
    (void)written;
}

/* Why there was nothing to open: because there is nobody (left) whom we may wake, or because of us. */
static bool is_nobody(int directory, int error) {
    struct stat found;
    if (error == EMFILE || error == ENFILE || error == ENOMEM)
        return false;
    return fstat(directory, &found) == 0 && found.st_nlink > 0; /* a directory that was removed says nothing of the new one */
}

struct ringing {
    int directory;
    char name[SHMD_FIFO_NAME_BYTES];
    int error; /* of the child's openat */
};

/* Open for reading too: without a reader there would be SIGPIPE, which nobody asked for. 0 or why it cannot be opened. */
static int open_and_write(const struct ringing *ringing) {
    int fd = openat(ringing->directory, ringing->name, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY);
    if (fd < 0)
        return errno;
    ssize_t written = write(fd, "", 1); /* full: it was rung often enough */
    (void)written;
    (void)close(fd);
    return 0;
}

static int ring_in_child(void *arg) {
    struct ringing *ringing = arg;
    (void)close(ringing->directory == 0); /* 0 or 1: all are taken, and these are the child's own */
    ringing->error = open_and_write(ringing);
    return 0;
}

/* We stand still meanwhile, and hear no signal, nor that it ends: nobody who waits for children of theirs sees this one. */
static int ring_by_child(struct ringing *ringing) {
    _Alignas(16) char stack[16384];
    sigset_t all, before;
    ringing->error = EMFILE;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t child = clone(ring_in_child, stack + sizeof stack, CLONE_VM | CLONE_VFORK, ringing);
    if (child > 0)
        (void)waitpid(child, NULL, (int)__WCLONE);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return ringing->error;
}

/* False: it could not be done. */
static bool write_fifo(int directory, enum shmd_sleepers who, uint32_t number) {
    struct ringing ringing = {.directory = directory};
    shmd_fifo_name(ringing.name, who, number);
    int error = open_and_write(&ringing);
    if (error == EMFILE)
        error = ring_by_child(&ringing);
    if (error != 0)
        return is_nobody(directory, error);
    SHMD_FAILPOINT(fifo_written);
    return true;
}

/* number: of the slot; 0: the publisher's, which its mark tells. */
static bool ring_marked(shmd_a64 *markp, int directory, enum shmd_sleepers who, uint32_t slot) {
    uint64_t mark = load_seq(markp); /* SYNC: pairs with the sleeper's store, which came before it armed */
    if (mark == 0)
        return true;
    if (!write_fifo(directory, who, who == SHMD_READERS ? slot : (uint32_t)(mark >> 32)))
        return false;
    (void)cas_seq(markp, &mark, 0); /* SYNC: pairs with the sleeper's store: a later sleep's mark stays */
    SHMD_FAILPOINT(fifo_cleared);
    return true;
}

static bool ring_fifos(const struct shmd_log *log, int directory, enum shmd_sleepers who) {
    bool all = true;
    if (who == SHMD_READERS) {
        uint32_t high = load_relaxed(&log->ctl->slot_high);
        for (uint32_t i = 0; i < high && i < log->slot_count; i++)
            all = ring_marked(&log->slots[i].asleep, directory, who, i) && all;
    } else {
        for (uint32_t i = 0; i < SHMD_WAITERS; i++)
            all = ring_marked(&log->ctl->waiters[i], directory, who, 0) && all;
    }
    return all;
}

bool shmd_bell_ring(const struct shmd_log *log, struct shmd_bell bell, enum shmd_sleepers who) {
    int saved = errno;
    bool all = true;
    if (bell.kind == SHMD_BELL_FIFO)
        all = ring_fifos(log, bell.fd, who);
    else
        write_eventfd(bell.fd);
    errno = saved;
    return all;
}

void shmd_bell_check(const struct shmd_log *log, struct shmd_bell bell, enum shmd_sleepers who) {
    shmd_a64 *armed = who == SHMD_READERS ? &log->ctl->armed : &log->header->space_armed;
    shmd_a64 *rung = who == SHMD_READERS ? &log->header->rung : &log->ctl->space_rung;
    uint64_t remembered = load_seq(armed); /* SYNC: pairs with the sleeper's add_seq: our change came before this */
    if (remembered == load_relaxed(rung))
        return;
    if (shmd_bell_ring(log, bell, who))
        store_relaxed(rung, remembered);
}
