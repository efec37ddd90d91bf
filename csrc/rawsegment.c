/*
 * A C client's raw segments: attached, or mapped, after a look whether they are what the daemon says; waited for through
 * the notify bell; locked by their semaphore.
 *
 * A program here waits for the lock in the kernel, which serves it before anybody who looks again by himself. Those who cannot
 * wait there (tasks in Python) sleep on the lock bell; so whoever gives the lock back rings it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "seat.h"

struct shmd_segment {
    struct shmd_seat seat;
    struct shmd_segment_info info;
    void *memory;
    int file_fd; /* -1: it is none */
    bool readonly, held;
};

/* --- attaching --- */

/* An id can come to mean another segment between the daemon's word and our attaching it. */
static bool is_the_one(const struct shmd_segment_info *info) {
    struct shmid_ds stat;
    return shmctl(info->id, IPC_STAT, &stat) == 0 && stat.shm_segsz == info->size_bytes &&
           (uint32_t)stat.shm_perm.__key == info->key && stat.shm_perm.cuid == info->creator_uid;
}

static int attach_memory(struct shmd_segment *s) {
    struct shmd_client *client = s->seat.client;
    void *memory = shmat(s->info.id, NULL, s->readonly ? SHM_RDONLY : 0);
    if (memory == (void *)-1)
        return shmd_fail(client, errno == EINVAL ? -EIDRM : -errno, "segment %s cannot be attached: %s", s->info.name,
                         strerror(errno));
    s->memory = memory;
    if (!is_the_one(&s->info))
        return shmd_fail(client, -EIDRM, "segment %s (id %d) is another one by now", s->info.name, s->info.id);
    return 0;
}

/* Beyond a file's end there is no memory, but SIGBUS. */
static int map_file(struct shmd_segment *s) {
    struct shmd_client *client = s->seat.client;
    struct stat found;
    if (fstat(s->file_fd, &found) != 0 || !S_ISREG(found.st_mode))
        return shmd_fail(client, -EPROTO, "the daemon sent for segment %s what is no file", s->info.name);
    if (found.st_size < 0 || (uint64_t)found.st_size < s->info.size_bytes)
        return shmd_fail(client, -EIDRM, "segment %s: somebody has truncated its file", s->info.name);
    void *memory = mmap(NULL, s->info.size_bytes, s->readonly ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED,
                        s->file_fd, 0);
    if (memory == MAP_FAILED)
        return shmd_fail(client, -errno, "segment %s cannot be mapped: %s", s->info.name, strerror(errno));
    s->memory = memory;
    return 0;
}

static void detach(struct shmd_segment *s) {
    if (s->memory != NULL && s->info.file)
        (void)munmap(s->memory, s->info.size_bytes);
    else if (s->memory != NULL)
        (void)shmdt(s->memory);
    s->memory = NULL;
    if (s->file_fd >= 0)
        close(s->file_fd);
    s->file_fd = -1;
}

/* --- opening, and going on --- */

static int ask_to_open(struct shmd_client *client, const char *name, const struct shmd_segment_options *options,
                       int64_t deadline_ns, struct shmd_reply *reply, int *fds) {
    struct shmd_request r;
    shmd_control_begin(client, &r, "segment", 5);
    shmd_request_text(&r, "segment", name);
    shmd_request_segment_options(&r, options);
    shmd_request_bool(&r, "create", options->create != SHMD_OPEN_ONLY);
    shmd_request_bool(&r, "exclusive", options->create == SHMD_CREATE_EXCLUSIVE);
    shmd_request_bool(&r, "readonly", options->readonly);
    return shmd_control_ask(client, &r, SHMD_REPLY_SEGMENT, deadline_ns, reply, fds);
}

static void ring(const struct shmd_segment *s, int fd) {
    if (fd == s->seat.record_fd && s->info.counts)
        return; /* what is in a FIFO stays there for whoever takes it; nobody is to take what nobody put there */
    (void)shmd_bell_ring(&s->seat.log, (struct shmd_bell){fd, SHMD_BELL_EVENTFD}, SHMD_READERS);
}

static int reopen(struct shmd_segment *s, int64_t deadline_ns) {
    struct shmd_client *client = s->seat.client;
    const struct shmd_segment_options as_it_is = {.create = SHMD_OPEN_ONLY, .readonly = s->readonly};
    struct shmd_reply reply;
    int fds[SHMD_FDS_MAX];
    int result = ask_to_open(client, s->info.name, &as_it_is, deadline_ns, &reply, fds);
    if (result != 0)
        return result;
    if (reply.segment.file)
        close(fds[SHMD_BELLS]); /* we have it mapped */
    if (memcmp(reply.segment.segment_id, s->info.segment_id, sizeof s->info.segment_id) == 0) {
        result = shmd_seat_own_fifo(&s->seat, fds);
        if (result == 0)
            shmd_seat_regrant(&s->seat, &reply, fds);
        else
            shmd_control_close(client, reply.id);
        return result;
    }
    close(fds[0]);
    close(fds[1]);
    shmd_control_close(client, reply.id);
    return -ENOENT;
}

/* The old bells may have been rung in vain, and we for others. */
static int retake_segment(struct shmd_seat *seat, bool resumed, int64_t deadline_ns) {
    struct shmd_segment *s = (struct shmd_segment *)seat;
    int result = resumed ? shmd_seat_resume(seat, deadline_ns) : reopen(s, deadline_ns);
    if (result == 0)
        ring(s, seat->record_fd);
    return result;
}

int shmd_open_segment(struct shmd_client *client, const char *name, const struct shmd_segment_options *options,
                      struct shmd_segment **segmentp) {
    static const struct shmd_segment_options defaults = {.create = SHMD_CREATE};
    const struct shmd_segment_options *o = options != NULL ? options : &defaults;
    struct shmd_reply reply;
    int fds[SHMD_FDS_MAX];
    *segmentp = NULL;
    if (o->key == -1)
        return shmd_fail(client, -EINVAL, "-1 is no key but what ftok() says of a path that does not exist");
    struct shmd_segment *s = calloc(1, sizeof *s);
    if (s == NULL)
        return shmd_fail(client, -ENOMEM, "out of memory");
    int result = ask_to_open(client, name, o, shmd_deadline_ns(SHMD_REQUEST_TIMEOUT_MS), &reply, fds);
    if (result != 0) {
        free(s);
        return result;
    }
    s->info = reply.segment;
    s->readonly = o->readonly;
    s->file_fd = s->info.file ? fds[SHMD_BELLS] : -1;
    result = shmd_seat_open_raw(&s->seat, client, &reply, s->info.counts ? s->info.fifo : NULL, fds);
    if (result != 0) {
        detach(s);
        free(s);
        return result;
    }
    s->seat.retake = retake_segment;
    result = s->info.file ? map_file(s) : attach_memory(s);
    if (result != 0) {
        shmd_close_segment(s);
        return result;
    }
    *segmentp = s;
    return SHMD_OK;
}

void shmd_close_segment(struct shmd_segment *segment) {
    if (segment == NULL)
        return;
    if (segment->held)
        (void)shmd_segment_unlock(segment);
    detach(segment);
    shmd_seat_close(&segment->seat);
    free(segment);
}

int shmd_remove_segment(struct shmd_client *client, const char *name) {
    struct shmd_request r;
    shmd_control_begin(client, &r, "remove-segment", 1);
    shmd_request_text(&r, "segment", name);
    return shmd_control_do(client, &r, shmd_deadline_ns(SHMD_REQUEST_TIMEOUT_MS));
}

void *shmd_segment_memory(const struct shmd_segment *segment) { return segment->memory; }

size_t shmd_segment_size(const struct shmd_segment *segment) { return segment->info.size_bytes; }

const struct shmd_segment_info *shmd_segment_about(const struct shmd_segment *segment) { return &segment->info; }

/* --- notifying, and waiting --- */

static int failed(struct shmd_segment *s, int result) {
    return shmd_fail(s->seat.client, result, "segment %s: %s", s->info.name,
                     result == -EIDRM ? "it was removed" : strerror(-result));
}

int shmd_segment_notify(struct shmd_segment *segment) {
    struct shmd_segment *s = segment;
    shmd_keep_in_touch(s->seat.client);
    if (s->seat.failure != 0)
        return failed(s, s->seat.failure);
    if (s->file_fd >= 0 && strcmp(s->info.sync, "always") == 0 && fdatasync(s->file_fd) != 0)
        return failed(s, -errno);
    if (s->info.counts && write(s->seat.record_fd, "", 1) != 1)
        return failed(s, -errno);
    ring(s, s->seat.record_fd);
    return SHMD_OK;
}

/* A notification that is ours: the bell has rung since the last, or there was a byte, which others do not get then. */
static bool take_notification(struct shmd_segment *s) {
    char byte;
    if (s->info.counts)
        return read(s->seat.record_fd, &byte, 1) == 1;
    bool rang = s->seat.rang;
    s->seat.rang = false;
    return rang;
}

int shmd_segment_wait(struct shmd_segment *segment, int timeout_ms) {
    struct shmd_seat *seat = &segment->seat;
    int64_t deadline_ns = shmd_deadline_ns(timeout_ms);
    shmd_seat_look(seat);
    shmd_keep_in_touch(seat->client);
    for (;;) {
        if (seat->failure != 0)
            return failed(segment, seat->failure);
        if (take_notification(segment))
            return SHMD_OK;
        if (timeout_ms == 0 || shmd_now_ns() >= deadline_ns)
            return SHMD_EMPTY;
        bool bells_may_fail = shmd_seat_doze_ns(seat) != INT64_MAX;
        int result = shmd_seat_sleep(seat, deadline_ns);
        if (result < 0)
            return failed(segment, result);
        if (bells_may_fail && shmd_now_ns() < deadline_ns)
            seat->rang = true; /* so the caller has to look by himself */
    }
}

/* --- the lock --- */

/* An id can come to mean another set here, too. */
static int check_semaphore(const struct shmd_segment *s) {
    struct semid_ds stat;
    union {
        int value;
        struct semid_ds *buffer;
    } argument = {.buffer = &stat};
    if (s->info.sem_id < 0)
        return -EOPNOTSUPP;
    if (semctl(s->info.sem_id, 0, IPC_STAT, argument) != 0)
        return errno == EINVAL ? -EIDRM : -errno;
    return (uint32_t)stat.sem_perm.__key == s->info.sem_key && stat.sem_nsems == 1 ? 0 : -EIDRM;
}

static int take_semaphore(const struct shmd_segment *s, int timeout_ms) {
    struct sembuf take = {0, -1, SEM_UNDO};
    struct timespec timeout = {timeout_ms / 1000, timeout_ms % 1000 * 1000000l};
    if (timeout_ms == 0)
        take.sem_flg |= IPC_NOWAIT;
    if (semtimedop(s->info.sem_id, &take, 1, timeout_ms > 0 ? &timeout : NULL) == 0)
        return SHMD_OK;
    if (errno == EAGAIN)
        return SHMD_BUSY;
    return errno == EINVAL ? -EIDRM : -errno;
}

int shmd_segment_lock(struct shmd_segment *segment, int timeout_ms) {
    int result = segment->held ? -EDEADLK : check_semaphore(segment);
    if (result == 0)
        result = take_semaphore(segment, timeout_ms);
    segment->held = segment->held || result == SHMD_OK;
    return result < 0 ? failed(segment, result) : result;
}

/* Free already: somebody set it to 1, as programs do that initialise a semaphore each time they start. Adding ours would make it
 * 2, which lets two in. */
static int give_semaphore(const struct shmd_segment *s) {
    struct sembuf give = {0, 1, SEM_UNDO | IPC_NOWAIT};
    int value = semctl(s->info.sem_id, 0, GETVAL);
    if (value < 0 || (value == 0 && semop(s->info.sem_id, &give, 1) != 0))
        return errno == EINVAL ? -EIDRM : -errno;
    return 0;
}

int shmd_segment_unlock(struct shmd_segment *segment) {
    if (!segment->held)
        return failed(segment, -EPERM);
    segment->held = false;
    int result = give_semaphore(segment);
    ring(segment, segment->seat.space_fd);
    return result < 0 ? failed(segment, result) : SHMD_OK;
}
