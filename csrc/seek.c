/*
 * Where a subscriber begins: at the newest record, the oldest, one of a certain number or time, or where another stood.
 *
 * Nothing here touches the ctl: a seek only says where the reader is to stand, and publishers may go past meanwhile.
 * shmd_join (reader.c) makes it hold, or has the caller seek again.
 */
#include <errno.h>

#include "failpoint.h"
#include "shmd.h"

static void stand_at(struct shmd_reader *r, uint64_t position, uint64_t next_seq, bool lapped) {
    r->position = position;
    r->next_seq = next_seq;
    r->lapped = lapped;
    r->skip_below = 0;
}

void shmd_seek_start(struct shmd_reader *r) { stand_at(r, 0, 1, false); }

void shmd_seek_position(struct shmd_reader *r, uint64_t position, uint64_t next_seq) {
    stand_at(r, position & ~(uint64_t)7, next_seq, true);
}

/* Both "new" and "last": the two ends of the newest record. */
static int seek_newest(struct shmd_reader *r, bool behind) {
    uint64_t head, tail, start = 0;
    struct shmd_record last;
    int result = shmd_log_bounds(r->log, &head, &tail);
    if (result != SHMD_OK)
        return result;
    result = shmd_last_record(r->log, head, tail, &last, &start);
    if (result == SHMD_EMPTY) {
        shmd_seek_start(r);
        return SHMD_OK;
    }
    fence_acquire(); /* SYNC: pairs with the release fence after head is stored in append.c */
    if (result != SHMD_OK) /* overtaken, or simply wrong: a publisher at work moves tail */
        return load_relaxed(&r->log->header->tail) != tail ? SHMD_AGAIN : result;
    if (load_relaxed(&r->log->header->head) > start)
        return SHMD_AGAIN;
    if (behind)
        stand_at(r, tail, last.seq + 1, false);
    else
        stand_at(r, start, last.seq, false);
    return SHMD_OK;
}

int shmd_seek_new(struct shmd_reader *r) { return seek_newest(r, true); }

int shmd_seek_last(struct shmd_reader *r) { return seek_newest(r, false); }

/* The record at `position`, or -EUCLEAN, or SHMD_AGAIN if head has passed it. SHMD_EMPTY for padding. */
static int look_at(const struct shmd_log *log, uint64_t position, uint64_t tail, struct shmd_record *recordp,
                   uint64_t *bytesp) {
    uint64_t length = 0;
    *bytesp = shmd_stored_bytes(log, position, tail, &length);
    bool data = *bytesp != 0 && length != UINT64_MAX;
    if (data) {
        SHMD_FAILPOINT(seek_checked);
        shmd_copy_out(log, recordp, position, sizeof *recordp);
        recordp->length = (uint32_t)length; /* the one that was checked */
    }
    fence_acquire(); /* SYNC: pairs with the release fence after head is stored in append.c */
    if (load_relaxed(&log->header->head) > position)
        return SHMD_AGAIN;
    if (*bytesp == 0)
        return -EUCLEAN;
    return data ? SHMD_OK : SHMD_EMPTY;
}

/* The first data record at or after *positionp, which moves there; SHMD_EMPTY if tail comes first. */
static int look_for_data(const struct shmd_log *log, uint64_t *positionp, uint64_t tail, struct shmd_record *recordp) {
    while (*positionp < tail) { /* padding is followed by a record: twice at most, unless the memory is forged */
        uint64_t bytes;
        int result = look_at(log, *positionp, tail, recordp, &bytes);
        if (result != SHMD_EMPTY)
            return result;
        *positionp += bytes;
    }
    return SHMD_EMPTY;
}

/* Where a joiner may start: at head, or where a publisher is about to move it, or died about to. */
static uint64_t first_for_keeps(const struct shmd_reader *r, uint64_t head, uint64_t tail) {
    uint64_t claim = load_relaxed(&r->log->header->claim);
    return r->wants_tether && claim > head && claim <= tail && (claim & 7u) == 0 ? claim : head;
}

int shmd_seek_all(struct shmd_reader *r) {
    struct shmd_record oldest;
    uint64_t head, tail;
    int result = shmd_log_bounds(r->log, &head, &tail);
    if (result != SHMD_OK)
        return result;
    uint64_t start = first_for_keeps(r, head, tail);
    uint64_t position = start;
    result = look_for_data(r->log, &position, tail, &oldest);
    if (result == SHMD_EMPTY)
        stand_at(r, tail, tail == 0 ? 1 : 0, false);
    else if (result == SHMD_OK)
        stand_at(r, start, oldest.seq, false);
    return result == SHMD_EMPTY ? SHMD_OK : result;
}

/* The scan found `record` at `position`. */
static void scan_found(struct shmd_reader *r, enum shmd_seek by, uint64_t value, uint64_t position,
                       const struct shmd_record *record) {
    if (by == SHMD_SEEK_SEQ && record->seq > value)
        stand_at(r, position, value, true); /* discarded already: what lies between counts as lost */
    else
        stand_at(r, position, record->seq, false);
}

int shmd_seek_scan(struct shmd_reader *r, enum shmd_seek by, uint64_t value, uint64_t steps, uint64_t *fromp) {
    uint64_t head, tail, next_seq = 0;
    int result = shmd_log_bounds(r->log, &head, &tail);
    if (result != SHMD_OK)
        return result;
    uint64_t start = first_for_keeps(r, head, tail);
    uint64_t position = *fromp > start && *fromp <= tail ? *fromp : start;
    for (; steps > 0; steps--) {
        struct shmd_record record;
        result = look_for_data(r->log, &position, tail, &record);
        if (result == SHMD_EMPTY) { /* all are older: stand at the end, and pass over what is older still */
            stand_at(r, position, tail == 0 ? 1 : next_seq, false);
            r->skip_below = by == SHMD_SEEK_SEQ ? value : 0;
            return SHMD_OK;
        }
        if (result != SHMD_OK) {
            *fromp = 0;
            return result;
        }
        if ((by == SHMD_SEEK_SEQ ? record.seq : record.time_ns) >= value) {
            scan_found(r, by, value, position, &record);
            return SHMD_OK;
        }
        next_seq = record.seq + 1;
        position += shmd_record_bytes(record.length);
    }
    *fromp = position;
    return SHMD_AGAIN;
}
