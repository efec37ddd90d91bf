/*
 * A C client's subscribers: where to begin, and the next record.
 *
 * A subscriber copies a stretch of records into private memory and hands them out one by one. Its cursor, for which
 * publishers of a `wait` topic wait, moves when the record after the one handed out is asked for, so that what a program
 * that dies had not finished is not counted as read; elsewhere nobody waits for it, and it moves with each stretch.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "seat.h"

#define READ_BATCH_BYTES 65536u
#define SEEK_STEPS 65536u

struct shmd_subscriber {
    struct shmd_seat seat;
    struct shmd_reader reader;
    bool tethered; /* as it wished to be */
    bool stretch;  /* the reader's copy holds records that were not handed out */
};

/* --- finding the place --- */

static int seek(struct shmd_reader *r, enum shmd_start start, uint64_t from, uint64_t *scannedp) {
    switch (start) {
    case SHMD_START_NEW: return shmd_seek_new(r);
    case SHMD_START_LAST: return shmd_seek_last(r);
    case SHMD_START_ALL: return shmd_seek_all(r);
    case SHMD_START_SEQ: return shmd_seek_scan(r, SHMD_SEEK_SEQ, from, SEEK_STEPS, scannedp);
    case SHMD_START_TIME: return shmd_seek_scan(r, SHMD_SEEK_TIME, from, SEEK_STEPS, scannedp);
    }
    return -EINVAL;
}

/* Until the cursor stands; publishers at work may be faster for a while. */
static int join_at(struct shmd_reader *r, enum shmd_start start, uint64_t from, int64_t deadline_ns) {
    uint64_t scanned = 0;
    for (;;) {
        int result = seek(r, start, from, &scanned);
        if (result == SHMD_OK)
            result = shmd_join(r);
        if (result != SHMD_AGAIN)
            return result;
        if (shmd_now_ns() >= deadline_ns)
            return -ETIMEDOUT;
        (void)sched_yield();
    }
}

/* Where another reader of this log stood, or as near as publishers let us. */
static int join_here(struct shmd_reader *r, uint64_t position, uint64_t next_seq, int64_t deadline_ns) {
    shmd_seek_position(r, position, next_seq);
    int result = shmd_join(r);
    return result == SHMD_AGAIN ? join_at(r, SHMD_START_SEQ, next_seq > 0 ? next_seq : 1, deadline_ns) : result;
}

static int join_first(struct shmd_subscriber *s, bool from_start, const struct shmd_subscriber_options *options,
                      int64_t deadline_ns) {
    if (!from_start)
        return join_at(&s->reader, options->start, options->from, deadline_ns);
    shmd_seek_start(&s->reader);
    int result = shmd_join(&s->reader);
    return result == SHMD_AGAIN ? join_at(&s->reader, SHMD_START_SEQ, 1, deadline_ns) : result;
}

/* Who waits for subscribers may publish from now on, and we miss nothing of it. */
static int tell_joined(struct shmd_seat *seat, int64_t deadline_ns) {
    struct shmd_request r;
    shmd_control_begin(seat->client, &r, "joined", 1);
    shmd_request_uint(&r, "handle", seat->handle);
    return shmd_control_do(seat->client, &r, deadline_ns);
}

/* --- opening, and going on --- */

static int ask_to_subscribe(struct shmd_client *client, const char *topic, uint64_t watch, bool tethered,
                            int64_t deadline_ns, struct shmd_reply *reply, int *fds) {
    struct shmd_request r;
    shmd_control_begin_for(client, &r, "subscribe", topic, watch != 0 ? 2 : 1);
    shmd_request_bool(&r, "tethered", tethered);
    if (watch != 0)
        shmd_request_uint(&r, "watch", watch);
    return shmd_control_ask(client, &r, SHMD_REPLY_SUBSCRIBER, deadline_ns, reply, fds);
}

/* Have a topic that does not exist yet announced; the daemon keeps a place at its beginning for us. */
static int watch_topic(struct shmd_client *client, const char *topic, bool tethered) {
    struct shmd_request r;
    shmd_control_begin(client, &r, "watch", 2);
    shmd_request_text(&r, "pattern", topic);
    shmd_request_bool(&r, "tethered", tethered);
    client->watch = r.id;
    client->watch_found = 0;
    return shmd_control_do(client, &r, shmd_deadline_ns(SHMD_REQUEST_TIMEOUT_MS));
}

static int subscribe_when_there(struct shmd_client *client, const char *topic, bool tethered, int timeout_ms,
                                struct shmd_reply *reply, int *fds) {
    int64_t deadline_ns = shmd_deadline_ns(timeout_ms);
    int result = watch_topic(client, topic, tethered);
    uint64_t watch = client->watch;
    while (result == 0) {
        while (result == 0 && client->watch_found != watch)
            result = shmd_control_hear(client, deadline_ns);
        client->watch_found = 0;
        if (result != 0)
            break;
        result = ask_to_subscribe(client, topic, watch, tethered, shmd_deadline_ns(SHMD_REQUEST_TIMEOUT_MS), reply, fds);
        if (result != -ENOENT)
            break;
        result = 0; /* removed again before we could open it: its successor will be announced */
    }
    if (result == -ETIMEDOUT)
        result = shmd_fail(client, -ENOENT, "there is no topic %s, and none came in time", topic);
    client->watch = 0;
    if (client->fd >= 0)
        shmd_control_close(client, watch);
    return result;
}

static int reopen_subscriber(struct shmd_subscriber *s, int64_t deadline_ns) {
    struct shmd_seat *seat = &s->seat;
    struct shmd_reader fresh;
    struct shmd_reply reply;
    int fds[SHMD_FDS_MAX];
    int result = ask_to_subscribe(seat->client, seat->info.name, 0, s->tethered, deadline_ns, &reply, fds);
    if (result == 0)
        result = shmd_seat_keep_if_same(seat, &reply, fds);
    if (result != 0)
        return result;
    result = shmd_reader_init(&fresh, &seat->log, reply.slot, reply.incarnation, s->tethered,
                              shmd_bell_of(&seat->log, fds[1]));
    if (result == 0)
        result = join_here(&fresh, s->reader.position, s->reader.next_seq, deadline_ns);
    if (result != 0) {
        close(fds[0]);
        close(fds[1]);
        shmd_control_close(seat->client, reply.id);
        return result;
    }
    fresh.lost_total = s->reader.lost_total;
    shmd_leave(&s->reader); /* only now: publishers wait for one of the two at any time */
    shmd_reader_free(&s->reader);
    s->reader = fresh;
    s->stretch = false;
    shmd_seat_regrant(seat, &reply, fds);
    return tell_joined(seat, deadline_ns);
}

/* The tether was taken because we were away; what was discarded since then counts as lost. */
static int tether_again(struct shmd_subscriber *s, int64_t deadline_ns) {
    if (!s->tethered || s->seat.untethered || !s->seat.info.waits || shmd_tethered(s))
        return 0;
    s->stretch = false;
    return join_here(&s->reader, s->reader.position, s->reader.next_seq, deadline_ns);
}

static int retake_subscriber(struct shmd_seat *seat, bool resumed, int64_t deadline_ns) {
    struct shmd_subscriber *s = (struct shmd_subscriber *)seat;
    int result = resumed ? shmd_seat_resume(seat, deadline_ns) : reopen_subscriber(s, deadline_ns);
    s->reader.bell.fd = seat->space_fd;
    return result == 0 && resumed ? tether_again(s, deadline_ns) : result;
}

static int join_new(struct shmd_subscriber *s, const struct shmd_reply *granted,
                    const struct shmd_subscriber_options *options) {
    int64_t deadline_ns = shmd_deadline_ns(SHMD_REQUEST_TIMEOUT_MS);
    struct shmd_seat *seat = &s->seat;
    int result = shmd_reader_init(&s->reader, &seat->log, granted->slot, granted->incarnation, s->tethered,
                                  shmd_bell_of(&seat->log, seat->space_fd));
    if (result == 0)
        result = join_first(s, granted->from_start, options, deadline_ns);
    if (result != 0)
        return shmd_fail(seat->client, result, "no place in topic %s: %s", seat->info.name, shmd_strerror(result));
    return granted->from_start ? 0 : tell_joined(seat, deadline_ns);
}

int shmd_open_subscriber(struct shmd_client *client, const char *topic, const struct shmd_subscriber_options *options,
                         struct shmd_subscriber **subscriberp) {
    static const struct shmd_subscriber_options defaults = {.start = SHMD_START_NEW};
    const struct shmd_subscriber_options *o = options != NULL ? options : &defaults;
    struct shmd_reply reply;
    int fds[SHMD_FDS_MAX];
    *subscriberp = NULL;
    struct shmd_subscriber *s = calloc(1, sizeof *s);
    if (s == NULL)
        return shmd_fail(client, -ENOMEM, "out of memory");
    s->tethered = !o->untethered;
    int result = o->topic_wait_ms != 0
                     ? subscribe_when_there(client, topic, s->tethered, o->topic_wait_ms, &reply, fds)
                     : ask_to_subscribe(client, topic, 0, s->tethered, shmd_deadline_ns(SHMD_REQUEST_TIMEOUT_MS), &reply,
                                        fds);
    if (result == 0)
        result = shmd_seat_open(&s->seat, client, &reply, fds, false);
    if (result != 0) {
        free(s);
        return result;
    }
    s->seat.retake = retake_subscriber;
    result = join_new(s, &reply, o);
    if (result != 0) {
        shmd_close_subscriber(s);
        return result;
    }
    *subscriberp = s;
    return SHMD_OK;
}

void shmd_close_subscriber(struct shmd_subscriber *subscriber) {
    if (subscriber == NULL)
        return;
    if (subscriber->reader.log != NULL)
        shmd_leave(&subscriber->reader);
    shmd_reader_free(&subscriber->reader);
    shmd_seat_close(&subscriber->seat);
    free(subscriber);
}

const struct shmd_topic_info *shmd_subscriber_topic(const struct shmd_subscriber *subscriber) {
    return &subscriber->seat.info;
}

/* --- reading --- */

/* The next record that is there: SHMD_OK, SHMD_EMPTY, SHMD_AGAIN, -EUCLEAN, -ENOMEM. */
static int take(struct shmd_subscriber *s, struct shmd_view *recordp) {
    for (;;) {
        if (s->stretch) {
            if (s->seat.info.waits)
                shmd_read_end(&s->reader); /* the record handed out last is done with */
            int result = shmd_read_next(&s->reader, recordp);
            if (result != SHMD_EMPTY)
                return result;
            s->stretch = false;
            shmd_read_end(&s->reader);
        }
        shmd_keep_in_touch(s->seat.client); /* between two stretches, where the reader may come to be another */
        int result = shmd_read_begin(&s->reader, READ_BATCH_BYTES);
        if (result != SHMD_OK)
            return result;
        s->stretch = true;
    }
}

int shmd_next(struct shmd_subscriber *subscriber, int timeout_ms, struct shmd_view *recordp) {
    struct shmd_subscriber *s = subscriber;
    struct shmd_client *client = s->seat.client;
    int64_t deadline_ns = -1;
    for (;;) {
        int failure = s->seat.failure; /* before the look: what was published before the topic was removed still comes */
        int result = take(s, recordp);
        if (result == SHMD_OK)
            return result;
        if (result < 0 || (result == SHMD_EMPTY && failure != 0)) {
            result = result < 0 ? result : failure;
            return shmd_fail(client, result, "topic %s: %s", s->seat.info.name, shmd_strerror(result));
        }
        if (deadline_ns < 0)
            deadline_ns = shmd_deadline_ns(timeout_ms);
        if (timeout_ms == 0 || shmd_now_ns() >= deadline_ns)
            return result;
        if (result == SHMD_AGAIN || shmd_reader_arm(&s->reader) == SHMD_AGAIN) {
            (void)sched_yield();
            continue;
        }
        if (s->seat.failure == 0)
            result = shmd_seat_sleep(&s->seat, deadline_ns);
        if (result < 0)
            return result;
    }
}

uint64_t shmd_lost(const struct shmd_subscriber *subscriber) { return subscriber->reader.lost_total; }

bool shmd_tethered(const struct shmd_subscriber *subscriber) {
    uint64_t word = load_relaxed(&subscriber->reader.slot->word);
    return subscriber->seat.info.waits && shmd_word_incarnation(word) == subscriber->reader.incarnation &&
           (word & SHMD_WORD_TETHERED) != 0;
}

int shmd_subscriber_fd(const struct shmd_subscriber *subscriber) { return subscriber->seat.epoll_fd; }

int shmd_arm(struct shmd_subscriber *subscriber) {
    shmd_seat_look(&subscriber->seat); /* forget what rang before */
    shmd_keep_in_touch(subscriber->seat.client);
    if (subscriber->seat.failure != 0)
        return SHMD_AGAIN;
    return shmd_reader_arm(&subscriber->reader);
}

int shmd_poll_timeout_ms(const struct shmd_subscriber *subscriber) {
    int64_t doze_ns = shmd_seat_doze_ns(&subscriber->seat);
    return doze_ns == INT64_MAX ? -1 : (int)(doze_ns / 1000000);
}
