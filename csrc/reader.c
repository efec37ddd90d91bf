/*
 * Subscribing: copy a stretch of the ring into private memory, find out whether a publisher came past meanwhile, then
 * parse the copy. Nothing is ever parsed in place.
 *
 * A tethered reader of a `wait` topic is never overtaken, so its copy is a plain memcpy that ThreadSanitizer may judge;
 * all others copy relaxed words. Both look at head afterwards: a tether can be taken away at any time.
 *
 * The cursor in the ctl is a copy of `position`, moved after the bytes were copied, by a compare-and-swap on the whole
 * slot word. If that fails the slot or its tether is no longer ours; reading goes on untethered, from private memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "failpoint.h"
#include "shmd.h"

#define READ_TRIES 8u /* stretches lost to a faster publisher before the caller gives others a turn */

#ifdef SHMD_WEAKEN_CURSOR /* a check of the check, as in append.c */
#define CURSOR_ORDER memory_order_relaxed
#else
#define CURSOR_ORDER memory_order_seq_cst
#endif

int shmd_reader_init(struct shmd_reader *r, const struct shmd_log *log, uint32_t slot, uint32_t incarnation,
                     bool tethered, struct shmd_bell bell) {
    if (log->ctl == NULL || slot >= log->slot_count)
        return -EINVAL;
    uint64_t word = load_relaxed(&log->slots[slot].word);
    if (shmd_word_incarnation(word) != incarnation)
        return -ESTALE;
    *r = (struct shmd_reader){
        .log = log,
        .slot = &log->slots[slot],
        .word = word,
        .incarnation = incarnation,
        .bell = bell,
        .wants_tether = tethered && (log->flags & SHMD_FLAG_WAIT),
    };
    r->tethered = r->wants_tether;
    return SHMD_OK;
}

void shmd_reader_free(struct shmd_reader *r) {
    free(r->copy);
    r->copy = NULL;
    r->copy_bytes = 0;
}

static void ring_for_room(struct shmd_reader *r) {
    if (r->log->flags & SHMD_FLAG_WAIT)
        shmd_bell_check(r->log, r->bell, SHMD_PUBLISHERS);
}

int shmd_join(struct shmd_reader *r) {
    r->tethered = r->wants_tether;
    uint64_t flags = SHMD_WORD_LIVE | (r->tethered ? SHMD_WORD_TETHERED : 0);
    uint64_t word = shmd_word(r->incarnation, flags, r->position);
    uint64_t expected = load_relaxed(&r->slot->word); /* with or without the tether that we had */
    if (shmd_word_incarnation(expected) != r->incarnation)
        return -ESTALE;
    /* SYNC: pairs with shmd_slowest_cursor; and whoever takes the slot makes this fail */
    if (!cas_seq(&r->slot->word, &expected, word))
        return -ESTALE;
    r->word = word;
    SHMD_FAILPOINT(join_cursor_stored);
    if (r->tethered) {
        (void)add_seq(&r->log->ctl->joins, 1); /* SYNC: pairs with the loads of joins in append.c */
        SHMD_FAILPOINT(join_announced);
        /* SYNC: pairs with the store of claim in give_up_waiting: it saw our bump, or we see its claim */
        uint64_t claim = load_seq(&r->log->header->claim);
        if (claim > load_acquire(&r->log->header->tail)) /* SYNC: tail only grows, and a claim is never beyond it */
            return -EUCLEAN;
        if (claim > r->position)
            return SHMD_AGAIN;
    }
    ring_for_room(r); /* the cursor may have moved up: from where the daemon put it, or from an earlier try */
    return SHMD_OK;
}

static int ensure_copy(struct shmd_reader *r, uint64_t bytes) {
    if (bytes <= r->copy_bytes)
        return SHMD_OK;
    uint8_t *grown = realloc(r->copy, bytes);
    if (grown == NULL)
        return -ENOMEM;
    r->copy = grown;
    r->copy_bytes = bytes;
    return SHMD_OK;
}

static void copy_stretch(struct shmd_reader *r, uint64_t bytes) {
    if (!r->tethered) {
        shmd_copy_out(r->log, r->copy, r->position, bytes);
        return;
    }
    uint64_t offset = r->position & r->log->mask;
    uint64_t run = r->log->capacity - offset < bytes ? r->log->capacity - offset : bytes;
    memcpy(r->copy, r->log->ring + offset, run);
    memcpy(r->copy + run, r->log->ring, bytes - run);
}

/* Publishers went past: stand at the oldest record that is left. */
static int move_to_head(struct shmd_reader *r) {
    uint64_t head, tail;
    int result = shmd_log_bounds(r->log, &head, &tail);
    if (result != SHMD_OK)
        return result;
    if (head <= r->position)
        return -EUCLEAN;
    r->position = head;
    r->lapped = true;
    return SHMD_OK;
}

/* How much to copy: what there is, but no more than bytes_max unless the first record alone is larger. */
static uint64_t stretch_bytes(const struct shmd_reader *r, uint64_t tail, size_t bytes_max) {
    uint64_t there = tail - r->position;
    if (there <= bytes_max)
        return there;
    uint64_t length;
    uint64_t first = shmd_stored_bytes(r->log, r->position, tail, &length);
    return first > bytes_max ? first : bytes_max & ~(uint64_t)7;
}

int shmd_read_begin(struct shmd_reader *r, size_t bytes_max) {
    struct shmd_log_header *header = r->log->header;
    if (bytes_max < 8)
        bytes_max = 8;
    for (unsigned try = 0; try < READ_TRIES; try++) {
        uint64_t tail = load_acquire(&header->tail); /* SYNC: pairs with the commit in append.c */
        if (tail == r->position)
            return SHMD_EMPTY;
        int result;
        if ((tail & 7u) != 0 || tail - r->position > r->log->capacity) {
            result = move_to_head(r);
            if (result < 0)
                return result;
            continue;
        }
        uint64_t bytes = stretch_bytes(r, tail, bytes_max);
        result = ensure_copy(r, bytes);
        if (result < 0)
            return result;
        copy_stretch(r, bytes);
        SHMD_FAILPOINT(read_copied);
        fence_acquire(); /* SYNC: pairs with the release fence after head is stored in append.c */
        if (load_relaxed(&header->head) > r->position) {
            result = move_to_head(r);
            if (result < 0)
                return result;
            continue; /* what was copied may be anything */
        }
        r->copy_at = 0;
        r->copy_end = bytes;
        r->copy_tail = tail;
        return SHMD_OK;
    }
    return SHMD_AGAIN;
}

/* Check the record at copy_at (its header is *record) and count what was missed before it. */
static int accept_record(struct shmd_reader *r, const struct shmd_record *record, uint64_t bytes, uint64_t *lostp) {
    uint32_t trailer;
    memcpy(&trailer, r->copy + r->copy_at + bytes - 4, 4);
    if (trailer != record->length || record->seq == 0)
        return -EUCLEAN;
    *lostp = 0;
    if (r->next_seq != 0 && record->seq != r->next_seq) {
        if (!r->lapped || record->seq < r->next_seq)
            return -EUCLEAN;
        *lostp = record->seq - r->next_seq;
    }
    r->lapped = false;
    r->next_seq = record->seq + 1;
    return SHMD_OK;
}

static void pass(struct shmd_reader *r, uint64_t bytes) {
    r->copy_at += bytes;
    r->position += bytes;
}

int shmd_read_next(struct shmd_reader *r, struct shmd_view *viewp) {
    const struct shmd_log *log = r->log;
    while (r->copy_end - r->copy_at >= 8) {
        uint64_t left = r->copy_end - r->copy_at;
        uint64_t offset = r->position & log->mask;
        struct shmd_record record = {0};
        memcpy(&record, r->copy + r->copy_at, left < sizeof record ? 8 : sizeof record);
        bool padding = shmd_is_padding(log, record.kind, record.length, offset);
        if (!padding && (record.kind != SHMD_KIND_DATA || record.length > log->payload_max))
            return -EUCLEAN;
        uint64_t bytes = padding ? record.length : shmd_record_bytes(record.length);
        if (bytes > r->copy_tail - r->position || offset + bytes > log->capacity)
            return -EUCLEAN;
        if (bytes > left)
            return SHMD_EMPTY; /* cut off by bytes_max: the next stretch begins with it */
        if (padding) {
            pass(r, bytes);
            continue;
        }
        uint64_t lost;
        int result = accept_record(r, &record, bytes, &lost);
        if (result != SHMD_OK)
            return result;
        *viewp = (struct shmd_view){
            .payload = r->copy + r->copy_at + sizeof record,
            .length = record.length,
            .publisher = record.publisher,
            .seq = record.seq,
            .time_ns = record.time_ns,
            .lost = lost,
        };
        pass(r, bytes);
        if (record.seq < r->skip_below)
            continue;
        r->lost_total += lost;
        return SHMD_OK;
    }
    return SHMD_EMPTY;
}

int shmd_read_first(struct shmd_reader *r, size_t bytes_max, struct shmd_view *viewp) {
    uint64_t before, tail = load_relaxed(&r->log->header->tail);
    int result;
    do { /* a stretch may hold nothing but padding or records to be skipped */
        before = r->position;
        result = shmd_read_begin(r, bytes_max);
        if (result != SHMD_OK)
            return result;
        result = shmd_read_next(r, viewp);
        if (result == SHMD_OK)
            return result;
        shmd_read_end(r);
    } while (result == SHMD_EMPTY && r->position != before && tail - r->position - 1 < r->log->capacity);
    return result;
}

/* The cursor store. SYNC: pairs with shmd_slowest_cursor: who sees it may overwrite what we copied before */
static bool swap_word(struct shmd_reader *r, uint64_t *expectedp, uint64_t word) {
    return atomic_compare_exchange_strong_explicit(&r->slot->word, expectedp, word, CURSOR_ORDER, memory_order_relaxed);
}

static bool is_own(const struct shmd_reader *r, uint64_t word) {
    return shmd_word_incarnation(word) == r->incarnation && (word & SHMD_WORD_LIVE) != 0;
}

static void store_cursor(struct shmd_reader *r) {
    uint64_t seen = r->word;
    for (unsigned try = 0; try < 2 && is_own(r, seen); try++) {
        uint64_t word = shmd_word(r->incarnation, seen & (SHMD_WORD_LIVE | SHMD_WORD_TETHERED), r->position);
        if (swap_word(r, &seen, word)) {
            r->word = word;
            r->tethered = (word & SHMD_WORD_TETHERED) != 0;
            store_relaxed(&r->slot->lost, r->lost_total);
            return;
        }
        if (seen != (r->word & ~SHMD_WORD_TETHERED)) /* anything but our word without its tether: not ours any more */
            break;
    }
    r->word = 0; /* never touch it again */
    r->tethered = false;
}

void shmd_read_end(struct shmd_reader *r) {
    store_cursor(r);
    SHMD_FAILPOINT(read_cursor_stored);
    ring_for_room(r);
    SHMD_FAILPOINT(read_rung);
}

bool shmd_available(const struct shmd_reader *r) { return load_relaxed(&r->log->header->tail) != r->position; }

int shmd_reader_arm(struct shmd_reader *r) {
    uint64_t mark = 0;
    if (r->bell.kind == SHMD_BELL_FIFO) {
        mark = (uint64_t)r->incarnation << 32 | ++r->sleeps;
        store_seq(&r->slot->asleep, mark); /* SYNC: pairs with the look at the marks in bell.c; before armed */
        SHMD_FAILPOINT(reader_marked);
    }
    (void)add_seq(&r->log->ctl->armed, 1); /* SYNC: pairs with shmd_bell_check after a commit */
    SHMD_FAILPOINT(reader_armed);
    /* SYNC: pairs with the commit in append.c: it sees us armed, or we see its tail */
    if (load_seq(&r->log->header->tail) == r->position)
        return SHMD_OK;
    if (mark != 0)
        (void)cas_seq(&r->slot->asleep, &mark, 0); /* SYNC: as above; not asleep after all */
    return SHMD_AGAIN;
}

void shmd_leave(struct shmd_reader *r) {
    uint64_t seen = r->word;
    for (unsigned try = 0; try < 2 && is_own(r, seen); try++) {
        if (cas_seq(&r->slot->word, &seen, shmd_word(r->incarnation, 0, 0))) /* SYNC: pairs with shmd_slowest_cursor */
            break;
        if (seen != (r->word & ~SHMD_WORD_TETHERED))
            break;
    }
    r->word = 0;
    r->tethered = false;
    ring_for_room(r);
}
