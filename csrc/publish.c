/*
 * A C client's publishers. An append is one call into the core; only where there is no room, or the lock is busy, does it
 * wait, and then it also hears the daemon, comes back to one that was away, and reports who holds it up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "seat.h"

#define LOCK_TURNS 4u /* a busy lock's owner needs nanoseconds, or the core: only then come pauses */
#define LOCK_PAUSE_MS 1
#define UNHEARD_NS 100000000ll /* so many wait for room that no FIFO is ours to be rung by */
#define STALL_REPORT_NS 1000000000ll /* a publisher that has waited so long tells the daemon */

struct shmd_publisher {
    struct shmd_seat seat;
    struct shmd_appender appender;
};

static int ask_to_publish(struct shmd_client *client, const char *topic,
                        const struct shmd_topic_options *options, int64_t deadline_ns, struct shmd_reply *reply,
                        int *fds) {
    struct shmd_request r;
    shmd_control_begin_for(client, &r, "publish", topic, 1);
    shmd_request_options(&r, options);
    return shmd_control_ask(client, &r, SHMD_REPLY_PUBLISHER, deadline_ns, reply, fds);
}

/* Records keep our number, which nobody else gets: the topic is the same. Only where a FIFO is called by it, it changes. */
static int reopen_publisher(struct shmd_seat *seat, int64_t deadline_ns) {
    struct shmd_client *client = seat->client;
    struct shmd_request peek;
    struct shmd_reply reply;
    int fds[SHMD_FDS_MAX];
    shmd_control_begin_for(client, &peek, "peek", seat->info.name, 0); /* "publish" would make the topic anew if it is gone */
    int result = shmd_control_ask(client, &peek, SHMD_REPLY_TOPIC, deadline_ns, &reply, fds);
    if (result == 0 && memcmp(reply.topic.topic_id, seat->info.topic_id, 16) != 0)
        result = -ENOENT;
    if (result == 0)
        result = ask_to_publish(client, seat->info.name, NULL, deadline_ns, &reply, fds);
    if (result == 0)
        result = shmd_seat_keep_if_same(seat, &reply, fds);
    if (result != 0)
        return result;
    shmd_seat_regrant(seat, &reply, fds);
    ((struct shmd_publisher *)seat)->appender.fifo = reply.publisher; /* records keep the old one, as Python's do */
    return result;
}

static int retake_publisher(struct shmd_seat *seat, bool resumed, int64_t deadline_ns) {
    struct shmd_publisher *p = (struct shmd_publisher *)seat;
    int result = resumed ? shmd_seat_resume(seat, deadline_ns) : reopen_publisher(seat, deadline_ns);
    p->appender.bell.fd = seat->record_fd;
    return result;
}

int shmd_open_publisher(struct shmd_client *client, const char *topic, const struct shmd_topic_options *options,
                        struct shmd_publisher **publisherp) {
    struct shmd_reply reply;
    int fds[SHMD_FDS_MAX];
    *publisherp = NULL;
    struct shmd_publisher *p = calloc(1, sizeof *p);
    if (p == NULL)
        return shmd_fail(client, -ENOMEM, "out of memory");
    int result = ask_to_publish(client, topic, options, shmd_deadline_ns(SHMD_REQUEST_TIMEOUT_MS), &reply, fds);
    if (result == 0)
        result = shmd_seat_open(&p->seat, client, &reply, fds, true);
    if (result != 0) {
        free(p);
        return result;
    }
    p->seat.retake = retake_publisher;
    shmd_appender_init(&p->appender, &p->seat.log, reply.publisher,
                       shmd_bell_of(&p->seat.log, p->seat.record_fd));
    *publisherp = p;
    return SHMD_OK;
}

void shmd_close_publisher(struct shmd_publisher *publisher) {
    if (publisher == NULL)
        return;
    shmd_seat_close(&publisher->seat);
    free(publisher);
}

const struct shmd_topic_info *shmd_publisher_topic(const struct shmd_publisher *publisher) {
    return &publisher->seat.info;
}

size_t shmd_record_size_max(const struct shmd_publisher *publisher) { return publisher->seat.log.payload_max; }

/* One wait for room or for the lock. */
struct patience {
    int64_t began_ns, look_ns, report_ns;
};

/* Have the daemon look who is to blame, once a second. */
static void report_stall(struct shmd_publisher *p, struct patience *patience) {
    if (shmd_now_ns() < patience->report_ns)
        return;
    patience->report_ns = shmd_now_ns() + STALL_REPORT_NS;
    struct shmd_client *client = p->seat.client;
    struct shmd_request r;
    shmd_control_begin_for(client, &r, "stall", p->seat.info.name, 0);
    if (client->fd >= 0)
        (void)shmd_control_post(client, &r);
}

/* Whether the next look for a dead subscriber is due; the one after it comes after an eighth of the time waited. */
static bool is_overdue(struct patience *patience) {
    int64_t now_ns = shmd_now_ns();
    if (now_ns < patience->look_ns)
        return false;
    int64_t pause_ns = (now_ns - patience->began_ns) / 8;
    if (pause_ns < SHMD_DOZE_MIN_NS)
        pause_ns = SHMD_DOZE_MIN_NS;
    patience->look_ns = now_ns + (pause_ns < SHMD_DOZE_MAX_NS ? pause_ns : SHMD_DOZE_MAX_NS);
    return true;
}

/* A daemon takes a dead subscriber's tether within a millisecond, but it may be away, or stopped. */
static int wait_for_room(struct shmd_publisher *p, int64_t deadline_ns, struct patience *patience) {
    if (shmd_appender_arm(&p->appender) == SHMD_AGAIN) {
        (void)sched_yield();
        return 0;
    }
    report_stall(p, patience);
    struct shmd_seat *seat = &p->seat;
    int space_fd = seat->info.fifo ? seat->record_fd : seat->space_fd;
    if ((is_overdue(patience) || seat->client->fd < 0) &&
        shmd_free_dead(&seat->client->roster, &seat->log, seat->info.topic_id)) /* others wait, too */
        (void)shmd_bell_ring(&seat->log, shmd_bell_of(&seat->log, space_fd), SHMD_PUBLISHERS);
    int64_t until_ns = deadline_ns < patience->report_ns ? deadline_ns : patience->report_ns;
    int64_t unheard_ns = p->appender.unheard ? shmd_now_ns() + UNHEARD_NS : INT64_MAX;
    int64_t look_ns = patience->look_ns < unheard_ns ? patience->look_ns : unheard_ns;
    return shmd_seat_sleep(seat, look_ns < until_ns ? look_ns : until_ns);
}

static int back_off(struct shmd_publisher *p, unsigned tries, struct patience *patience) {
    if (tries < LOCK_TURNS) {
        (void)sched_yield();
        return 0;
    }
    report_stall(p, patience);
    shmd_keep_in_touch(p->seat.client);
    return poll(NULL, 0, LOCK_PAUSE_MS) < 0 ? -errno : 0;
}

static int refuse_append(struct shmd_publisher *p, int result) {
    struct shmd_client *client = p->seat.client;
    const char *topic = p->seat.info.name;
    if (result == -EMSGSIZE)
        return shmd_fail(client, result, "records for topic %s have at most %zu bytes, alone or together", topic,
                         shmd_record_size_max(p));
    return shmd_fail(client, result, "topic %s: %s", topic, shmd_strerror(result));
}

int shmd_publish_many(struct shmd_publisher *publisher, const struct shmd_bytes *payloads, size_t count, int timeout_ms,
                      uint64_t *seqp) {
    struct shmd_publisher *p = publisher;
    int64_t deadline_ns = timeout_ms < 0 ? INT64_MAX : -1;
    struct patience patience = {0, 0, 0};
    uint64_t seq = 0;
    shmd_keep_in_touch(p->seat.client);
    for (unsigned tries = 0;; tries++) {
        if (p->seat.failure != 0)
            return refuse_append(p, p->seat.failure);
        int result = count > 0 ? shmd_append(&p->appender, payloads, count, &seq) : SHMD_OK;
        if (result == SHMD_OK && seqp != NULL)
            *seqp = seq;
        if (result == SHMD_OK)
            return result;
        if (result < 0)
            return refuse_append(p, result);
        if (tries == 0) {
            int64_t now_ns = shmd_now_ns();
            patience = (struct patience){now_ns, now_ns + SHMD_DOZE_MIN_NS, now_ns + STALL_REPORT_NS};
            deadline_ns = shmd_deadline_ns(timeout_ms);
        }
        if (shmd_now_ns() >= deadline_ns)
            return result;
        int waited = result == SHMD_FULL ? wait_for_room(p, deadline_ns, &patience) : back_off(p, tries, &patience);
        if (waited < 0)
            return waited;
    }
}

int shmd_publish(struct shmd_publisher *publisher, const void *payload, size_t size, int timeout_ms, uint64_t *seqp) {
    struct shmd_bytes one = {payload, size};
    return shmd_publish_many(publisher, &one, 1, timeout_ms, seqp);
}

int shmd_wait_for_subscribers(struct shmd_publisher *publisher, uint32_t count, int timeout_ms) {
    struct shmd_client *client = publisher->seat.client;
    struct shmd_request r;
    shmd_control_begin_for(client, &r, "wait-subscribers", publisher->seat.info.name, 1);
    shmd_request_uint(&r, "count", count);
    return shmd_control_do(client, &r, shmd_deadline_ns(timeout_ms));
}
