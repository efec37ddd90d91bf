/*
 * One grant in use by a C client: its two segments, its two bells, and how to sleep until one of them rings. Internal to
 * the library. A publisher, a subscriber and a raw segment each begin with one.
 */
#ifndef SHMD_SEAT_H
#define SHMD_SEAT_H

#include "control.h"
#include "shmd.h"

/* Who looks by itself does so after the one, then after an eighth of the time for which nothing came, at most the other. */
#define SHMD_DOZE_MIN_NS 10000000ll
#define SHMD_DOZE_MAX_NS 1000000000ll

struct shmd_seat {
    struct shmd_client *client;
    struct shmd_seat *next;
    uint64_t handle; /* what the daemon calls this grant: the id of the request that opened it */
    bool publishes;
    bool raw;  /* a segment's: `info` has its name and id only, and the two bells are its notify bell and its lock bell */
    bool rang; /* a segment's notify bell, since this was last cleared */
    uint64_t client_number; /* what the client was called when it was granted */
    int failure;     /* why it cannot go on: -EIDRM, or what a daemon that came back refused it with */
    bool untethered; /* the daemon took the tether, and will not give it back */
    struct shmd_topic_info info;
    struct shmd_log log;
    void *log_memory, *ctl_memory;
    int record_fd, space_fd; /* the bells; on a topic with FIFOs our own, and the directory in which the others' are */
    const char *fifo;        /* a segment's, if its notify bell is one; each of its bytes is for one who waits */
    uint32_t fifo_number;    /* what our own is called by: the slot, or the publisher's number */
    int epoll_fd;            /* watches the bell that is for us, and the daemon */
    int64_t doze_ns;         /* how long to sleep at most where bells may fail to come */
    /* Go on at a daemon that came back and has the grant (`resumed`) or needs another. -ENOENT: the topic is gone. */
    int (*retake)(struct shmd_seat *seat, bool resumed, int64_t deadline_ns);
};

/* Attach what `granted` names, and take its bells over; on failure they are closed, and nothing stays. */
int shmd_seat_open(struct shmd_seat *seat, struct shmd_client *client, const struct shmd_reply *granted, int *fds,
                   bool publishes);
/* The same for a raw segment, which the caller attaches. fifo: the path of its notify bell, if that is a FIFO. */
int shmd_seat_open_raw(struct shmd_seat *seat, struct shmd_client *client, const struct shmd_reply *granted,
                       const char *fifo, int *fds);
/* Have our own descriptor of the segment's FIFO in the place of the one that came with a grant, whose other holders could make it
 * block. On failure fds are closed. */
int shmd_seat_own_fifo(struct shmd_seat *seat, int *fds);
void shmd_seat_close(struct shmd_seat *seat);
/* Go on with the same grant: ask for its bells, and use them. */
int shmd_seat_resume(struct shmd_seat *seat, int64_t deadline_ns);
/* Use these bells from now on, and wake everybody: they may have been rung in vain, and we for others. */
void shmd_seat_swap_bells(struct shmd_seat *seat, const int *fds);
/* Sleep until our bell rings, the daemon says something, or the deadline. 0, or -EINTR. */
int shmd_seat_sleep(struct shmd_seat *seat, int64_t deadline_ns);
/* Take note of what came, without waiting. */
void shmd_seat_look(struct shmd_seat *seat);
/* How long a sleep may last in nanoseconds; INT64_MAX: for ever. */
int64_t shmd_seat_doze_ns(const struct shmd_seat *seat);
/* Have the bells of another grant in `fds`; or give it back if it is of another topic, which has the name of ours by now:
 * -ENOENT. */
int shmd_seat_keep_if_same(struct shmd_seat *seat, const struct shmd_reply *granted, int *fds);
/* Another grant of the same topic is in use from now on. */
void shmd_seat_regrant(struct shmd_seat *seat, const struct shmd_reply *granted, const int *fds);
/* Hear the daemon, and come back to one that was away; cheap if that was done a moment ago. */
void shmd_keep_in_touch(struct shmd_client *client);
/* Connect again, and have every seat go on. */
int shmd_client_retake(struct shmd_client *client, int64_t deadline_ns);

/* Also for a segment that was removed. */
void shmd_seats_topic_gone(struct shmd_client *client, const uint8_t topic_id[16]);
void shmd_seats_untethered(struct shmd_client *client, uint64_t handle);

#endif
