/*
 * Seats: attached segments, bells, sleep, and the way back to a daemon that was restarted.
 *
 * A sleeper waits in an epoll instance of its own, in which the bell that is for it sits edge-triggered, and
 * the control socket beside it. Nobody ever reads a bell (docs/design.md, 5), so one ring wakes every sleeper exactly once.
 *
 * Where bells can fail to come, sleepers look again by themselves: while the daemon is away, and for a while after it came
 * back, since others may ring the bells of the one before; and on topics whose participants have different users.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#include "seat.h"

/* --- segments --- */

static int attach(struct shmd_client *client, uint32_t id, bool readonly, void **memoryp, size_t *bytesp) {
    struct shmid_ds stat;
    void *memory = shmat((int)id, NULL, readonly ? SHM_RDONLY : 0);
    if (memory == (void *)-1) /* an id that means nothing: the topic was removed between the grant and now */
        return shmd_fail(client, errno == EINVAL ? -EIDRM : -errno, "segment %u cannot be attached: %s", id,
                         strerror(errno));
    if (shmctl((int)id, IPC_STAT, &stat) != 0) {
        int error = errno;
        (void)shmdt(memory);
        return shmd_fail(client, -error, "segment %u cannot be looked at: %s", id, strerror(error));
    }
    *memoryp = memory;
    *bytesp = stat.shm_segsz;
    return 0;
}

static void detach(struct shmd_seat *seat) {
    if (seat->log_memory != NULL)
        (void)shmdt(seat->log_memory);
    if (seat->ctl_memory != NULL)
        (void)shmdt(seat->ctl_memory);
    seat->log_memory = seat->ctl_memory = NULL;
}

static int attach_both(struct shmd_seat *seat) {
    struct shmd_client *client = seat->client;
    const struct shmd_topic_info *info = &seat->info;
    struct shmd_identity identity = {
        .capacity = info->size_bytes,
        .flags = (info->waits ? SHMD_FLAG_WAIT : 0) | (info->exclusive ? SHMD_FLAG_EXCLUSIVE : 0) |
                 (info->fifo ? SHMD_FLAG_FIFO : 0),
    };
    size_t log_bytes = 0, ctl_bytes = 0;
    memcpy(identity.topic_id, info->topic_id, 16);
    int result = attach(client, info->log_id, !seat->publishes, &seat->log_memory, &log_bytes);
    if (result == 0)
        result = attach(client, info->ctl_id, false, &seat->ctl_memory, &ctl_bytes);
    if (result != 0)
        return result;
    result = shmd_log_open(&seat->log, seat->log_memory, log_bytes, seat->ctl_memory, ctl_bytes, &identity);
    if (result != 0)
        return shmd_fail(client, result, "the segments of topic %s are not what the daemon says", info->name);
    return 0;
}

/* --- bells --- */

static int listening_fd(const struct shmd_seat *seat) { return seat->publishes ? seat->space_fd : seat->record_fd; }

static int ringing_fd(const struct shmd_seat *seat) { return seat->publishes ? seat->record_fd : seat->space_fd; }

static int watch(struct shmd_seat *seat, int fd, uint32_t how) {
    struct epoll_event event = {.events = EPOLLIN | how, .data = {.fd = fd}};
    return epoll_ctl(seat->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

/* An eventfd is never read, so only its edges count; a FIFO is emptied. */
static int watch_bell(struct shmd_seat *seat) {
    return watch(seat, listening_fd(seat), seat->info.fifo ? 0 : EPOLLET);
}

static void close_bells(const int *fds) {
    close(fds[0]);
    close(fds[1]);
}

/* On a topic with FIFOs: the directory in the place of the bell that we ring, our own in that of the one for us. */
static int open_fifos(struct shmd_seat *seat, uint32_t number, int *fds) {
    char name[SHMD_FIFO_NAME_BYTES];
    int *listening = &fds[seat->publishes ? 1 : 0], *ringing = &fds[seat->publishes ? 0 : 1];
    shmd_fifo_name(name, seat->publishes ? SHMD_PUBLISHERS : SHMD_READERS, number);
    *ringing = open(seat->info.fifo_dir, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (*ringing < 0)
        return shmd_fail(seat->client, -errno, "%s: %s", seat->info.fifo_dir, strerror(errno));
    *listening = openat(*ringing, name, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY);
    if (*listening < 0) {
        int error = errno;
        close(*ringing);
        return shmd_fail(seat->client, -error, "%s/%s: %s", seat->info.fifo_dir, name, strerror(error));
    }
    return 0;
}

/* The bells of a grant: they came with it, or are found by their names. */
static int take_bells(struct shmd_seat *seat, const struct shmd_reply *granted, int *fds) {
    seat->fifo_number = seat->publishes ? granted->publisher : granted->slot;
    return seat->info.fifo ? open_fifos(seat, seat->fifo_number, fds) : 0;
}

int shmd_seat_own_fifo(struct shmd_seat *seat, int *fds) {
    struct stat found;
    if (seat->fifo == NULL)
        return 0;
    int own = open(seat->fifo, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY);
    int error = own < 0 ? errno : fstat(own, &found) == 0 && S_ISFIFO(found.st_mode) ? 0 : EPROTO;
    if (error != 0) {
        if (own >= 0)
            close(own);
        close_bells(fds);
        return shmd_fail(seat->client, -error, "the FIFO %s of segment %s: %s", seat->fifo, seat->info.name, strerror(error));
    }
    close(fds[0]);
    fds[0] = own;
    return 0;
}

void shmd_seat_swap_bells(struct shmd_seat *seat, const int *fds) {
    int old_record = seat->record_fd, old_space = seat->space_fd;
    (void)epoll_ctl(seat->epoll_fd, EPOLL_CTL_DEL, listening_fd(seat), NULL);
    seat->record_fd = fds[0];
    seat->space_fd = fds[1];
    (void)watch_bell(seat);
    (void)watch(seat, seat->client->fd, 0);
    close(old_record);
    close(old_space);
    struct shmd_bell bell = seat->raw ? (struct shmd_bell){ringing_fd(seat), SHMD_BELL_EVENTFD}
                                      : shmd_bell_of(&seat->log, ringing_fd(seat));
    (void)shmd_bell_ring(&seat->log, bell, seat->publishes ? SHMD_READERS : SHMD_PUBLISHERS);
}

void shmd_seat_regrant(struct shmd_seat *seat, const struct shmd_reply *granted, const int *fds) {
    seat->handle = granted->id;
    seat->client_number = seat->client->number;
    shmd_seat_swap_bells(seat, fds);
}

/* --- a seat's life --- */

/* Listen, attach, and be one of the client's seats; on failure nothing stays. */
static int take_seat(struct shmd_seat *seat, int *fds) {
    struct shmd_client *client = seat->client;
    seat->record_fd = fds[0];
    seat->space_fd = fds[1];
    seat->client_number = client->number;
    seat->doze_ns = SHMD_DOZE_MIN_NS;
    seat->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int result = seat->epoll_fd < 0 ? -errno : watch_bell(seat);
    if (result == 0)
        result = watch(seat, client->fd, 0);
    if (result != 0)
        (void)shmd_fail(client, result, "bells cannot be watched: %s", strerror(-result));
    else if (!seat->raw)
        result = attach_both(seat);
    if (result == 0) {
        seat->next = client->seats;
        client->seats = seat;
        return 0;
    }
    detach(seat);
    if (seat->epoll_fd >= 0)
        close(seat->epoll_fd);
    close_bells(fds);
    shmd_control_close(client, seat->handle);
    return result;
}

int shmd_seat_open(struct shmd_seat *seat, struct shmd_client *client, const struct shmd_reply *granted, int *fds,
                   bool publishes) {
    seat->client = client;
    seat->handle = granted->id;
    seat->publishes = publishes;
    seat->info = granted->topic;
    int result = take_bells(seat, granted, fds);
    if (result != 0) {
        shmd_control_close(client, granted->id);
        return result;
    }
    return take_seat(seat, fds);
}

int shmd_seat_open_raw(struct shmd_seat *seat, struct shmd_client *client, const struct shmd_reply *granted,
                       const char *fifo, int *fds) {
    seat->client = client;
    seat->handle = granted->id;
    seat->raw = true;
    seat->fifo = fifo;
    memcpy(seat->info.name, granted->segment.name, sizeof seat->info.name);
    memcpy(seat->info.topic_id, granted->segment.segment_id, sizeof seat->info.topic_id);
    int result = shmd_seat_own_fifo(seat, fds);
    if (result != 0) {
        shmd_control_close(client, granted->id);
        return result;
    }
    result = take_seat(seat, fds);
    if (result == 0) {
        shmd_seat_look(seat); /* a bell that is new to us counts as rung */
        seat->rang = false;
    }
    return result;
}

void shmd_seat_close(struct shmd_seat *seat) {
    struct shmd_client *client = seat->client;
    for (struct shmd_seat **link = &client->seats; *link != NULL; link = &(*link)->next) {
        if (*link == seat) {
            *link = seat->next;
            break;
        }
    }
    detach(seat);
    close(seat->epoll_fd);
    close(seat->record_fd);
    close(seat->space_fd);
    if (client->fd < 0)
        return;
    struct shmd_request r; /* answered before we go on, so that an exclusive topic is free then */
    shmd_control_begin(client, &r, "close", 1);
    shmd_request_uint(&r, "handle", seat->handle);
    (void)shmd_control_do(client, &r, shmd_deadline_ns(SHMD_RESUME_TIMEOUT_MS));
}

void shmd_seats_topic_gone(struct shmd_client *client, const uint8_t topic_id[16]) {
    for (struct shmd_seat *seat = client->seats; seat != NULL; seat = seat->next)
        if (memcmp(seat->info.topic_id, topic_id, 16) == 0)
            seat->failure = -EIDRM;
}

void shmd_seats_untethered(struct shmd_client *client, uint64_t handle) {
    for (struct shmd_seat *seat = client->seats; seat != NULL; seat = seat->next)
        if (seat->handle == handle)
            seat->untethered = true;
}

int shmd_seat_keep_if_same(struct shmd_seat *seat, const struct shmd_reply *granted, int *fds) {
    int result = -ENOENT;
    if (memcmp(granted->topic.topic_id, seat->info.topic_id, 16) == 0)
        result = take_bells(seat, granted, fds);
    else if (granted->fds > 0)
        close_bells(fds);
    if (result != 0)
        shmd_control_close(seat->client, granted->id);
    return result;
}

/* --- sleep --- */

int64_t shmd_seat_doze_ns(const struct shmd_seat *seat) {
    const struct shmd_client *client = seat->client;
    if (client->fd < 0 || shmd_now_ns() < client->adrift_until_ns)
        return seat->doze_ns;
    return seat->info.hostile ? SHMD_DOZE_MAX_NS : INT64_MAX;
}

/* Once: whoever writes faster than this reads wakes us again. */
static void empty_fifo(int fd) {
    char bytes[4096];
    ssize_t size = read(fd, bytes, sizeof bytes);
    (void)size;
}

/* Sees what rang, once; edge-triggered, it is forgotten by that. */
static int wait_events(struct shmd_seat *seat, int timeout_ms) {
    struct epoll_event events[2];
    int count = epoll_wait(seat->epoll_fd, events, 2, timeout_ms);
    if (count < 0)
        return -errno;
    for (int i = 0; i < count; i++)
        if (events[i].data.fd == seat->client->fd)
            shmd_control_dispatch(seat->client);
        else if (seat->info.fifo)
            empty_fifo(events[i].data.fd);
        else
            seat->rang = true;
    return count;
}

int shmd_seat_sleep(struct shmd_seat *seat, int64_t deadline_ns) {
    int64_t doze_ns = shmd_seat_doze_ns(seat);
    int64_t until_ns = deadline_ns;
    if (doze_ns != INT64_MAX) {
        int64_t look_ns = shmd_now_ns() + doze_ns;
        until_ns = look_ns < deadline_ns ? look_ns : deadline_ns;
    }
    int count = wait_events(seat, shmd_until_ms(until_ns));
    if (count < 0)
        return count;
    if (count > 0 || doze_ns == INT64_MAX)
        seat->doze_ns = SHMD_DOZE_MIN_NS;
    else if (seat->doze_ns < SHMD_DOZE_MAX_NS)
        seat->doze_ns += seat->doze_ns / 8; /* a lost bell makes a pause an eighth longer */
    shmd_keep_in_touch(seat->client);
    return 0;
}

void shmd_seat_look(struct shmd_seat *seat) { (void)wait_events(seat, 0); }

/* --- the daemon goes and comes --- */

int shmd_seat_resume(struct shmd_seat *seat, int64_t deadline_ns) {
    struct shmd_client *client = seat->client;
    struct shmd_request r;
    struct shmd_reply reply;
    int fds[SHMD_FDS_MAX];
    shmd_control_begin(client, &r, "resume", 1);
    shmd_request_uint(&r, "handle", seat->handle);
    int result = shmd_control_ask(client, &r, SHMD_REPLY_RESUMED, deadline_ns, &reply, fds);
    if (result == 0 && reply.fds != (seat->info.fifo ? 0 : SHMD_BELLS)) {
        if (reply.fds > 0)
            close_bells(fds);
        return shmd_fail(client, -EPROTO, "the daemon sent bells of another kind than topic %s has", seat->info.name);
    }
    if (result == 0 && seat->info.fifo)
        result = open_fifos(seat, seat->fifo_number, fds);
    if (result == 0)
        result = shmd_seat_own_fifo(seat, fds);
    if (result == 0)
        shmd_seat_swap_bells(seat, fds);
    return result;
}

/* Pauses double up to a limit, and each is drawn at random: a thousand clients do not come back at once. */
static void set_pause(struct shmd_client *client) {
    uint64_t dice = (uint64_t)shmd_now_ns() * 6364136223846793005u + client->last_id; /* Knuth's MMIX constants */
    client->retry_ns = shmd_now_ns() + (int64_t)((dice >> 33) % (uint64_t)client->pause_ns);
    client->pause_ns = 2 * client->pause_ns < SHMD_PAUSE_MAX_NS ? 2 * client->pause_ns : SHMD_PAUSE_MAX_NS;
}

/* Whether `seat` goes on, or at least need not be asked again. */
static int retake(struct shmd_client *client, struct shmd_seat *seat, int64_t deadline_ns) {
    bool resumed = client->resumed && seat->client_number == client->number;
    int result = seat->retake(seat, resumed, deadline_ns);
    if (result == 0 || client->fd < 0 || result == -ETIMEDOUT || result == -EINTR)
        return client->fd < 0 && result == 0 ? -ENOTCONN : result;
    seat->failure = result == -ENOENT ? -EIDRM : result;
    return 0;
}

int shmd_client_retake(struct shmd_client *client, int64_t deadline_ns) {
    int result = shmd_control_connect(client, deadline_ns);
    for (struct shmd_seat *seat = client->seats; seat != NULL && result == 0; seat = seat->next)
        if (seat->failure == 0)
            result = retake(client, seat, deadline_ns);
    if (result == 0) {
        client->adrift_until_ns = shmd_now_ns() + SHMD_SETTLE_NS;
        client->pause_ns = SHMD_PAUSE_MIN_NS;
        return SHMD_OK;
    }
    shmd_control_lost(client);
    set_pause(client);
    return result;
}

void shmd_keep_in_touch(struct shmd_client *client) {
    int64_t now_ns = shmd_now_ns();
    if (client->fd >= 0 && now_ns - client->looked_ns >= SHMD_LOOK_NS) {
        client->looked_ns = now_ns;
        shmd_control_dispatch(client);
    }
    if (client->fd < 0 && client->reconnects && client->number != 0 && now_ns >= client->retry_ns)
        (void)shmd_client_retake(client, shmd_deadline_ns(SHMD_RESUME_TIMEOUT_MS));
}
