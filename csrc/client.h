/*
 * shmd for C programs: publish to topics and subscribe to them, and share raw segments, together with programs in Python or
 * anything else.
 *
 *     struct shmd_client *client;
 *     struct shmd_subscriber *subscriber;
 *     struct shmd_view record;
 *     if (shmd_connect(NULL, "reader", &client) < 0 ||
 *         shmd_open_subscriber(client, "prices", NULL, &subscriber) < 0)
 *         die(shmd_error_text(client));
 *     while (shmd_next(subscriber, -1, &record) == SHMD_OK)
 *         use(record.seq, record.payload, record.length);
 *     shmd_disconnect(client);
 *
 * Results. SHMD_OK is done. A positive enum shmd_result is an answer to handle: SHMD_FULL, SHMD_BUSY and SHMD_EMPTY after
 * a time-out. A negative number is -errno; shmd_error_text() then says more, in the daemon's own words if it refused:
 *
 *     -ENOENT  no daemon there, or no such topic      -EACCES  this user may not
 *     -EEXIST  the topic has other options            -EBUSY   exclusive, and somebody else publishes
 *     -EDQUOT  a limit or quota                       -EINVAL  a name or option that cannot be
 *     -EIDRM   the topic was removed                  -EUCLEAN shared memory holds what no publisher writes
 *     -EMSGSIZE the record is too large               -ESTALE  somebody else has our place by now
 *     -ENOTCONN the daemon went away                  -ETIMEDOUT it does not answer
 *     -EPROTO  it broke the protocol                  -EPROTONOSUPPORT, -EXDEV another version, or namespace
 *     -EINTR   a signal came: nothing was done, call again, or end. (One that comes before the wait interrupts nothing: wait
 *              for a limited time, or in a poll loop of your own, with ppoll or a signalfd.)
 *
 * Time-outs are in milliseconds: -1 waits for ever, 0 does not wait.
 *
 * The daemon is not needed for records to flow. A client that lost it goes on, looks by itself now and then for records
 * whose bell may not come, and reconnects from within shmd_next() and shmd_publish(), which may then take as long as a
 * stuck daemon takes to answer, at most a second. shmd_set_reconnect() leaves that to the program.
 *
 * One thread at a time uses a client and what was opened through it; there are no threads inside. A forked child uses
 * neither. Nothing here touches signal handlers or standard streams. A C++ program may include this header.
 */
#ifndef SHMD_CLIENT_H
#define SHMD_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"

SHMD_API_BEGIN

struct shmd_client;
struct shmd_publisher;
struct shmd_subscriber;
struct shmd_segment;

/* --- the connection --- */

/* Connect to the daemon at `path`; NULL: $SHMD_SOCKET, else the first control.sock that exists in $XDG_RUNTIME_DIR/shmd,
 * /run/user/UID/shmd, /tmp/shmd-UID and /run/shmd (for root in the last and the first). Directories that another user owns
 * or may write to are left out. `name` (may be NULL) is what `shmd stat` shows. *clientp is set also after a failure, for
 * its shmd_error_text(), and has to be given to shmd_disconnect(); it is NULL only after -ENOMEM. */
int shmd_connect(const char *path, const char *name, struct shmd_client **clientp);
/* The same, but where there is no daemon yet, try again until `timeout_ms` is over, for programs that are started together with
 * theirs. */
int shmd_connect_wait(const char *path, const char *name, int timeout_ms, struct shmd_client **clientp);
/* Close all that is open, say goodbye, and free the client. NULL is fine. */
void shmd_disconnect(struct shmd_client *client);
bool shmd_connected(const struct shmd_client *client);
/* Whether to reconnect from within shmd_next() and shmd_publish(); at first true. */
void shmd_set_reconnect(struct shmd_client *client, bool by_itself);
/* Try once, now: the same places in the same topics, with the bells of the daemon that came back. SHMD_OK also if the
 * connection was never lost. Topics that are gone show it as -EIDRM. */
int shmd_client_resume(struct shmd_client *client);

/* What went wrong last: the sentence, and the hint if there is one. "" if nothing did. Valid until the next failure. */
const char *shmd_error_text(const struct shmd_client *client);
/* The daemon's code for it, such as "topic-busy" (docs/wire-protocol.md); "" if it was not the daemon that refused. */
const char *shmd_error_code(const struct shmd_client *client);
/* A sentence for any result of this library. */
const char *shmd_strerror(int result);

/* --- topics --- */

enum shmd_when_full { SHMD_WHEN_FULL_ANY, SHMD_DISCARD_OLD, SHMD_WAIT };
enum shmd_choice { SHMD_EITHER = 0, SHMD_YES = 1, SHMD_NO = -1 };

/* All zero: no opinion, which matches what exists, and takes the defaults where the topic is created. */
struct shmd_topic_options {
    uint64_t size_bytes;
    enum shmd_when_full when_full;
    enum shmd_choice exclusive;
    unsigned mode; /* such as 0640 */
    enum shmd_choice attached; /* gone with its last participant */
    double idle_ttl_s;
    double stall_timeout_s;
    enum shmd_choice fifo; /* wake sleepers through FIFOs, where descriptors cannot be passed */
};

struct shmd_topic_info {
    char name[256];
    uint8_t topic_id[16];
    uint32_t log_id, log_key, ctl_id, ctl_key; /* System V ids and keys */
    uint64_t size_bytes;
    uint32_t mode, uid, gid;
    bool waits;     /* else the oldest records are discarded */
    bool exclusive; /* one publisher */
    bool attached;  /* gone with its last participant */
    bool hostile;   /* participants may have different users */
    bool fifo;      /* sleepers are woken through FIFOs, in `fifo_dir` */
    char fifo_dir[256];
};

/* Make the topic exist. `infop` may be NULL. */
int shmd_declare(struct shmd_client *client, const char *topic, const struct shmd_topic_options *options,
                 struct shmd_topic_info *infop);
int shmd_remove_topic(struct shmd_client *client, const char *topic);

/* --- publishing --- */

/* Declares the topic too. `options` may be NULL. */
int shmd_open_publisher(struct shmd_client *client, const char *topic, const struct shmd_topic_options *options,
                        struct shmd_publisher **publisherp);
void shmd_close_publisher(struct shmd_publisher *publisher);
const struct shmd_topic_info *shmd_publisher_topic(const struct shmd_publisher *publisher);
/* The largest payload, in bytes. */
size_t shmd_record_size_max(const struct shmd_publisher *publisher);
/* Publish one record; *seqp (may be NULL) is its sequence number. On a `wait` topic waits for room: SHMD_FULL if there
 * was none in time. SHMD_BUSY if another publisher held the lock all the time. */
int shmd_publish(struct shmd_publisher *publisher, const void *payload, size_t size, int timeout_ms, uint64_t *seqp);
/* All or none, one after the other, one bell; *seqp is the last one's. */
int shmd_publish_many(struct shmd_publisher *publisher, const struct shmd_bytes *payloads, size_t count, int timeout_ms,
                      uint64_t *seqp);
/* Until at least `count` subscribers have joined. -ETIMEDOUT. */
int shmd_wait_for_subscribers(struct shmd_publisher *publisher, uint32_t count, int timeout_ms);

/* --- subscribing --- */

enum shmd_start {
    SHMD_START_NEW,  /* what is published from now on */
    SHMD_START_LAST, /* the newest record, then what follows */
    SHMD_START_ALL,  /* the oldest that is kept */
    SHMD_START_SEQ,  /* the record with the sequence number `from` */
    SHMD_START_TIME, /* the first record at or after `from`, in nanoseconds since 1970 */
};

struct shmd_subscriber_options {
    enum shmd_start start;
    uint64_t from;
    bool untethered;    /* publishers of a `wait` topic need not wait for us */
    int topic_wait_ms;  /* for a topic that does not exist yet, from its first record on. 0: -ENOENT at once */
};

int shmd_open_subscriber(struct shmd_client *client, const char *topic, const struct shmd_subscriber_options *options,
                         struct shmd_subscriber **subscriberp);
void shmd_close_subscriber(struct shmd_subscriber *subscriber);
const struct shmd_topic_info *shmd_subscriber_topic(const struct shmd_subscriber *subscriber);
/* The next record; SHMD_EMPTY if none came in time. Its payload is private memory, valid until the next call. On a `wait`
 * topic a record counts as read when the one after it is asked for. Records that were published before the topic was
 * removed still come; -EIDRM after the last. */
int shmd_next(struct shmd_subscriber *subscriber, int timeout_ms, struct shmd_view *recordp);
/* Records missed so far: publishers did not wait for us, and we were too slow. */
uint64_t shmd_lost(const struct shmd_subscriber *subscriber);
/* Whether publishers of this `wait` topic wait for us. They may have stopped to: see stall_timeout_s. */
bool shmd_tethered(const struct shmd_subscriber *subscriber);

/*
 * In a program with a poll loop of its own:
 *
 *     while ((result = shmd_next(subscriber, 0, &record)) == SHMD_OK) ...;     until SHMD_EMPTY
 *     if (shmd_arm(subscriber) == SHMD_OK)                                    else: again, something came
 *         poll shmd_subscriber_fd(subscriber) for POLLIN, at most shmd_poll_timeout_ms(subscriber)
 */
int shmd_subscriber_fd(const struct shmd_subscriber *subscriber);
int shmd_arm(struct shmd_subscriber *subscriber);
int shmd_poll_timeout_ms(const struct shmd_subscriber *subscriber);

/* --- raw segments: all bytes are the program's, shared with Python's client.segment() and with whoever attaches the key --- */

enum shmd_create {
    SHMD_CREATE,           /* if there is none */
    SHMD_CREATE_EXCLUSIVE, /* -EEXIST if there is one */
    SHMD_OPEN_ONLY,        /* -ENOENT if there is none */
};

/* All zero: no opinion, which matches what exists, and takes the defaults where the segment is created. */
struct shmd_segment_options {
    uint64_t size_bytes; /* needed where it is created; one that exists may be larger */
    unsigned mode;       /* such as 0640 */
    int key;             /* such as ftok(path, 's'); a random one */
    bool adopt;          /* take over the segment with that key though shmd did not make it */
    enum shmd_create create;
    bool readonly;            /* writing to its memory is then a SIGSEGV */
    enum shmd_choice file;    /* a file of the daemon's, mapped, which survives a reboot; it has neither key nor id */
    enum shmd_choice attached; /* gone with its last user, and without a key or lock */
};

struct shmd_segment_info {
    char name[256];
    uint8_t segment_id[16];
    int32_t id;       /* System V id; -1: a file */
    uint32_t key;     /* 0: none */
    int32_t sem_id;   /* of the semaphore that is its lock; -1: it has none */
    uint32_t sem_key;
    uint64_t size_bytes;
    uint32_t mode, uid, gid, creator_uid;
    bool adopted, file, attached;
    char sync[16]; /* of a file: "none", "interval", or "always": what a power failure may cost. "" is "none" */
    char path[512]; /* of a file */
    bool counts;    /* its notify bell is a FIFO: each byte in it ends one wait of one process */
    char fifo[256]; /* which that is */
};

/* `options` may be NULL: -EINVAL then if it does not exist yet, for want of a size. -EEXIST is also that it exists with other
 * options (shmd_error_code() is "segment-mismatch"), or that another segment has the key. */
int shmd_open_segment(struct shmd_client *client, const char *name, const struct shmd_segment_options *options,
                      struct shmd_segment **segmentp);
/* Detach, and free the lock if it is held. The segment stays, as its lifetime says. */
void shmd_close_segment(struct shmd_segment *segment);
/* Its name and key are free at once; who has it attached may go on using the memory. */
int shmd_remove_segment(struct shmd_client *client, const char *name);
/* Where it is attached, until it is closed: also after it was removed, and without a daemon. */
void *shmd_segment_memory(const struct shmd_segment *segment);
size_t shmd_segment_size(const struct shmd_segment *segment);
const struct shmd_segment_info *shmd_segment_about(const struct shmd_segment *segment);
/* Wake all who wait for a change, in every process; or, where the notify bell is a FIFO, one of them: -EAGAIN if it is full. Of a
 * file with "always" the bytes go to the disk first. -EIDRM. */
int shmd_segment_notify(struct shmd_segment *segment);
/* Until somebody (also this program) notified since the last call returned, or since it was opened: several calls may come
 * as one. Where the notify bell is a FIFO, until there is a byte in it, which nobody else then gets. SHMD_EMPTY: nobody did in
 * time. May return without reason while the daemon is away, and after it came back: look at the memory. Reconnects as
 * shmd_next() does. -EIDRM: it was removed. -EINTR. */
int shmd_segment_wait(struct shmd_segment *segment, int timeout_ms);
/* The lock is a System V semaphore that anybody may use: {0, -1, SEM_UNDO} takes it. The kernel frees it if its owner dies, and
 * only then does the data need a look. SHMD_BUSY: somebody else had it all the time. -EDEADLK: we have it already; opened
 * twice in one program, it is a lock between the two. -EOPNOTSUPP: there is none (`attached`). -EIDRM, -EACCES, -EINTR. */
int shmd_segment_lock(struct shmd_segment *segment, int timeout_ms);
/* -EPERM: we do not have it. */
int shmd_segment_unlock(struct shmd_segment *segment);

SHMD_API_END

#endif
