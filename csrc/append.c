/*
 * Publishing: make room, write beyond tail, store tail, ring.
 *
 *        head                       tail            end
 *   ──────┼──────── kept ────────────┼──── being ────┼──────
 *         │                          │    written    │
 *
 * The store of tail is the commit: one 8-byte store, so that a publisher killed anywhere leaves all of its records or
 * none. What it wrote beyond tail nobody looks at; a head that it had moved already is merely a little early. So a lock
 * taken over from the dead needs no repair.
 *
 * Room on a `discard-old` topic: head is stored, then a release fence, then the bytes. A reader copies, then an acquire
 * fence, then looks at head: if any byte it copied was one of ours, it sees our head too, and throws the copy away.
 *
 * Room on a `wait` topic: head never passes the slowest tethered cursor. The cursor is cached; `joins` tells when a new
 * tether may lie below it. Where head is to go is claimed first, and joins looked at after, because a joiner stores its
 * cursor, bumps joins, and looks at the claim last: one of the two always sees the other, and only then does head move
 * and a byte change. (head itself cannot be moved on trial: a reader that saw it would skip records that nobody touched,
 * and a publisher that died there could not put it back. docs/models/tether.pml has both as mutants.)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <time.h>

#include "failpoint.h"
#include "shmd.h"

/* The checks of the checks: a build with one of these weakened must fail the stress test (tests/c). */
#ifdef SHMD_WEAKEN_COMMIT
#define COMMIT_ORDER memory_order_relaxed
#else
#define COMMIT_ORDER memory_order_seq_cst
#endif

void shmd_appender_init(struct shmd_appender *a, const struct shmd_log *log, uint32_t publisher, struct shmd_bell bell) {
    *a = (struct shmd_appender){.log = log, .publisher = publisher, .fifo = publisher, .bell = bell};
}

static void scan_cursors(struct shmd_appender *a, uint64_t head, uint64_t tail) {
    a->joins = load_seq(&a->log->ctl->joins); /* SYNC: pairs with the bump in shmd_join; before the cursors are read */
    a->slowest = shmd_slowest_cursor(a->log, head, tail);
    a->scanned = true;
}

/* Move head to `pos` on a `wait` topic, or find that a tethered cursor forbids it. */
static int give_up_waiting(struct shmd_appender *a, uint64_t head, uint64_t tail, uint64_t pos) {
    struct shmd_log_header *header = a->log->header;
    if (!a->scanned || pos > a->slowest)
        scan_cursors(a, head, tail);
    if (pos > a->slowest) {
        a->wanted = pos;
        return SHMD_FULL;
    }
    store_seq(&header->claim, pos); /* SYNC: pairs with the look at claim in shmd_join */
    SHMD_FAILPOINT(append_claimed);
    if (load_seq(&a->log->ctl->joins) == a->joins) /* SYNC: pairs with the bump in shmd_join */
        return SHMD_OK;
    scan_cursors(a, head, tail);
    if (pos <= a->slowest)
        return SHMD_OK;
    store_seq(&header->claim, head); /* SYNC: as above */
    a->wanted = pos;
    return SHMD_FULL;
}

/* Give up old records until [tail, end) fits. */
static int make_room(struct shmd_appender *a, uint64_t head, uint64_t tail, uint64_t end) {
    const struct shmd_log *log = a->log;
    if (end - head <= log->capacity)
        return SHMD_OK;
    uint64_t floor = end - log->capacity;
    uint64_t pos = head;
    while (pos < floor) {
        uint64_t length;
        uint64_t bytes = shmd_stored_bytes(log, pos, tail, &length);
        if (bytes == 0)
            return -EUCLEAN;
        pos += bytes;
    }
    if (log->flags & SHMD_FLAG_WAIT) {
        int result = give_up_waiting(a, head, tail, pos);
        if (result != SHMD_OK)
            return result;
    }
    store_relaxed(&log->header->head, pos); /* ordered by the fence below */
    SHMD_FAILPOINT(append_head_stored);
    fence_release(); /* SYNC: pairs with the acquire fence after a reader's copy: our bytes imply our head */
    return SHMD_OK;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void write_word(const struct shmd_log *log, uint64_t position, uint64_t word) {
    store_relaxed((shmd_a64 *)(void *)(log->ring + (position & log->mask)), word);
}

static void write_words(const struct shmd_log *log, uint64_t position, const uint8_t *from, size_t bytes) {
    shmd_a64 *words = (shmd_a64 *)(void *)(log->ring + (position & log->mask));
    for (size_t i = 0; i < bytes / 8; i++) {
        uint64_t word;
        memcpy(&word, from + i * 8, 8);
        store_relaxed(words + i, word);
    }
}

/* Header and trailer; the last word holds the payload's last few bytes too, if there are any. */
static void write_frame(const struct shmd_log *log, uint64_t position, const struct shmd_record *record) {
    uint64_t header[4];
    memcpy(header, record, sizeof header);
    for (unsigned i = 0; i < 4; i++)
        write_word(log, position + i * 8u, header[i]);
}

static void write_record(const struct shmd_log *log, uint64_t position, const struct shmd_record *record,
                         const uint8_t *payload) {
    uint64_t bytes = shmd_record_bytes(record->length);
    size_t whole = record->length & ~(size_t)7;
    uint64_t at = position + sizeof *record;
    write_frame(log, position, record);
    write_words(log, at, payload, whole / 16 * 8);
    SHMD_FAILPOINT(append_half_copied);
    write_words(log, at + whole / 16 * 8, payload + whole / 16 * 8, whole - whole / 16 * 8);
    uint8_t end[16] = {0}; /* what is left of the payload (0 to 7 bytes), zeros, and the length again: 8 or 16 bytes */
    size_t left = bytes - sizeof *record - whole;
    if (record->length > whole)
        memcpy(end, payload + whole, record->length - whole);
    memcpy(end + left - 4, &record->length, 4);
    write_words(log, at + whole, end, left);
}

static uint64_t padding_before(const struct shmd_log *log, uint64_t position, uint64_t bytes) {
    uint64_t left = log->capacity - (position & log->mask);
    return bytes > left ? left : 0;
}

/* Where the last of these records would end, beginning at tail. */
static uint64_t place(const struct shmd_log *log, uint64_t tail, const struct shmd_bytes *payloads, size_t count) {
    uint64_t end = tail;
    for (size_t i = 0; i < count; i++) {
        uint64_t bytes = shmd_record_bytes(payloads[i].size);
        end += padding_before(log, end, bytes) + bytes;
    }
    return end;
}

static uint64_t write_padding(const struct shmd_log *log, uint64_t position, uint64_t bytes) {
    if (bytes > 0)
        write_word(log, position, (uint64_t)SHMD_KIND_PADDING << 32 | bytes);
    return position + bytes;
}

static void commit(struct shmd_appender *a, uint64_t end, size_t count, uint64_t payload_bytes) {
    struct shmd_log_header *header = a->log->header;
    SHMD_FAILPOINT(append_copied);
    store_relaxed(&header->published, load_relaxed(&header->published) + count);
    store_relaxed(&header->published_bytes, load_relaxed(&header->published_bytes) + payload_bytes);
    /* SYNC: pairs with the acquire of tail in reader.c, and, with shmd_bell_check, with the look at tail after arming */
    atomic_store_explicit(&header->tail, end, COMMIT_ORDER);
    SHMD_FAILPOINT(append_committed);
}

/* tail, and the sequence number of the last record before it. */
static int current_end(const struct shmd_log *log, uint64_t *headp, uint64_t *tailp, uint64_t *seqp) {
    struct shmd_record last = {0};
    uint64_t start;
    uint64_t tail = load_relaxed(&log->header->tail); /* only who holds the lock (or the lease) writes these */
    uint64_t head = load_relaxed(&log->header->head);
    if (((tail | head) & 7u) != 0 || head > tail || tail - head > log->capacity)
        return -EUCLEAN;
    int result = shmd_last_record(log, head, tail, &last, &start);
    if (result < 0)
        return result;
    *headp = head;
    *tailp = tail;
    *seqp = last.seq;
    return SHMD_OK;
}

static int append_locked(struct shmd_appender *a, const struct shmd_bytes *payloads, size_t count, uint64_t *seqp) {
    const struct shmd_log *log = a->log;
    uint64_t head, tail, seq, payload_bytes = 0;
    int result = current_end(log, &head, &tail, &seq);
    if (result != SHMD_OK)
        return result;
    uint64_t end = place(log, tail, payloads, count);
    result = make_room(a, head, tail, end);
    if (result != SHMD_OK)
        return result;
    struct shmd_record record = {.kind = SHMD_KIND_DATA, .time_ns = now_ns(), .publisher = a->publisher};
    uint64_t at = tail;
    for (size_t i = 0; i < count; i++) {
        uint64_t bytes = shmd_record_bytes(payloads[i].size);
        at = write_padding(log, at, padding_before(log, at, bytes));
        record.length = (uint32_t)payloads[i].size;
        record.seq = ++seq;
        write_record(log, at, &record, payloads[i].data);
        at += bytes;
        payload_bytes += payloads[i].size;
    }
    commit(a, end, count, payload_bytes);
    *seqp = seq;
    return SHMD_OK;
}

static void ring_readers(struct shmd_appender *a) {
    shmd_bell_check(a->log, a->bell, SHMD_READERS);
    SHMD_FAILPOINT(append_rung);
}

static void count_takeover(struct shmd_log_header *header) {
    store_relaxed(&header->takeovers, load_relaxed(&header->takeovers) + 1);
}

int shmd_append(struct shmd_appender *a, const struct shmd_bytes *payloads, size_t count, uint64_t *seqp) {
    struct shmd_log_header *header = a->log->header;
    bool shared = (a->log->flags & SHMD_FLAG_EXCLUSIVE) == 0;
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++) {
        if (payloads[i].size > a->log->payload_max)
            return -EMSGSIZE;
        total += shmd_record_bytes(payloads[i].size);
    }
    if (total > a->log->capacity / 4)
        return -EMSGSIZE;
    if (shared) {
        bool taken;
        if (shmd_lock(&header->lock, &taken) != SHMD_OK)
            return SHMD_BUSY;
        if (taken)
            count_takeover(header);
        SHMD_FAILPOINT(append_locked);
    }
    int result = append_locked(a, payloads, count, seqp);
    if (shared)
        shmd_unlock(&header->lock);
    SHMD_FAILPOINT(append_unlocked);
    if (result == SHMD_OK)
        ring_readers(a);
    return result;
}

/* Among the waiters: in the old place, if we are still there, else in the first free one. */
static void mark_waiting(struct shmd_appender *a) {
    shmd_a64 *waiters = a->log->ctl->waiters;
    uint64_t mark = (uint64_t)a->fifo << 32 | ++a->sleeps;
    uint64_t expected = a->mark;
    a->unheard = false;
    /* SYNC: pairs with the look at the marks in bell.c, as all swaps here do */
    if (expected == 0 || !cas_seq(&waiters[a->place], &expected, mark)) {
        uint32_t place = 0;
        for (expected = 0; place < SHMD_WAITERS && !cas_seq(&waiters[place], &expected, mark); expected = 0) /* SYNC: as above */
            place++;
        a->unheard = place == SHMD_WAITERS;
        a->place = place;
    }
    a->mark = a->unheard ? 0 : mark;
    SHMD_FAILPOINT(space_marked);
}

static void unmark_waiting(struct shmd_appender *a) {
    uint64_t expected = a->mark;
    if (expected != 0)
        (void)cas_seq(&a->log->ctl->waiters[a->place], &expected, 0); /* SYNC: as in mark_waiting */
    a->mark = 0;
}

/* Whether the slowest cursor is still in the way. */
static bool is_full(const struct shmd_appender *a) {
    uint64_t head, tail;
    return shmd_log_bounds(a->log, &head, &tail) == SHMD_OK && shmd_slowest_cursor(a->log, head, tail) < a->wanted;
}

int shmd_appender_arm(struct shmd_appender *a) {
    if (a->bell.kind == SHMD_BELL_FIFO)
        mark_waiting(a);
    (void)add_seq(&a->log->header->space_armed, 1); /* SYNC: pairs with shmd_bell_check after a reader's cursor store */
    SHMD_FAILPOINT(space_armed);
    if (is_full(a))
        return SHMD_OK;
    unmark_waiting(a);
    return SHMD_AGAIN;
}

int shmd_reserve(struct shmd_appender *a, size_t size, uint8_t **payloadp) {
    const struct shmd_log *log = a->log;
    uint64_t head, tail, seq;
    if (!(log->flags & SHMD_FLAG_EXCLUSIVE))
        return -EINVAL;
    if (size > log->payload_max)
        return -EMSGSIZE;
    int result = current_end(log, &head, &tail, &seq);
    if (result != SHMD_OK)
        return result;
    uint64_t bytes = shmd_record_bytes(size);
    uint64_t at = tail + padding_before(log, tail, bytes);
    result = make_room(a, head, tail, at + bytes);
    if (result == SHMD_OK)
        *payloadp = log->ring + (at & log->mask) + sizeof(struct shmd_record);
    return result;
}

int shmd_commit_reserved(struct shmd_appender *a, size_t size, uint64_t *seqp) {
    const struct shmd_log *log = a->log;
    uint64_t head, tail, seq;
    int result = current_end(log, &head, &tail, &seq);
    if (result != SHMD_OK)
        return result;
    uint64_t bytes = shmd_record_bytes(size);
    uint64_t at = write_padding(log, tail, padding_before(log, tail, bytes));
    struct shmd_record record = {
        .length = (uint32_t)size, .kind = SHMD_KIND_DATA, .seq = seq + 1, .time_ns = now_ns(), .publisher = a->publisher};
    uint32_t length = record.length;
    write_frame(log, at, &record);
    memcpy(log->ring + (at & log->mask) + bytes - 4, &length, 4);
    commit(a, at + bytes, 1, size);
    *seqp = seq + 1;
    ring_readers(a);
    return SHMD_OK;
}
