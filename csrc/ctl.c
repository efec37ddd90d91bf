/*
 * The ctl segment: slots, cursors and the two pairs of sleep counters.
 *
 * The doorbell, which models/bell.pml in the docs checks: a sleeper adds one to `armed` and then looks once more at what
 * it waits for; a waker changes that (commits, or moves its cursor) and then compares `armed` with `rung`. If they differ
 * it remembers `armed`, rings once, and stores what it remembered. Each side writes its own word and then reads the
 * other's, all sequentially consistent, so one of them always sees the other. A waker that dies in between leaves the
 * counters different, and the next one rings.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "shmd.h"

size_t shmd_ctl_bytes(uint32_t slot_count) { return SHMD_HEADER_BYTES + (size_t)slot_count * sizeof(struct shmd_slot); }

int shmd_ctl_format(void *ctl, size_t ctl_bytes, uint32_t slot_count, const uint8_t topic_id[16]) {
    struct shmd_ctl_header *header = ctl;
    if (slot_count == 0 || slot_count > SHMD_SLOTS_MAX || ctl_bytes < shmd_ctl_bytes(slot_count))
        return -EINVAL;
    memset(ctl, 0, shmd_ctl_bytes(slot_count));
    header->version = SHMD_LAYOUT_MAJOR << 16 | SHMD_LAYOUT_MINOR;
    header->header_bytes = SHMD_HEADER_BYTES;
    header->slot_count = slot_count;
    memcpy(header->topic_id, topic_id, 16);
    store_release(&header->magic, SHMD_CTL_MAGIC); /* SYNC: pairs with the acquire of magic in shmd_log_open */
    return 0;
}

int shmd_slot_grant(const struct shmd_log *log, uint32_t slot, uint32_t incarnation, bool live, bool tethered) {
    if (log->ctl == NULL || slot >= log->slot_count || incarnation == 0 || incarnation > SHMD_INCARNATION_MAX)
        return -EINVAL;
    tethered = live && tethered && (log->flags & SHMD_FLAG_WAIT);
    uint64_t flags = (live ? SHMD_WORD_LIVE : 0) | (tethered ? SHMD_WORD_TETHERED : 0);
    store_relaxed(&log->slots[slot].lost, 0);
    store_seq(&log->slots[slot].word, shmd_word(incarnation, flags, 0)); /* SYNC: pairs with shmd_slowest_cursor */
    uint32_t high = load_relaxed(&log->ctl->slot_high);
    if (high <= slot)
        store_relaxed(&log->ctl->slot_high, slot + 1);
    if (tethered)
        (void)add_seq(&log->ctl->joins, 1); /* SYNC: pairs with the loads of joins in append.c */
    return 0;
}

void shmd_slot_release(const struct shmd_log *log, uint32_t slot, uint32_t incarnation) {
    if (log->ctl == NULL || slot >= log->slot_count)
        return;
    uint64_t word = load_relaxed(&log->slots[slot].word);
    while (shmd_word_incarnation(word) == incarnation) {
        /* SYNC: pairs with the holder's own compare-and-swaps: whoever comes second fails */
        if (cas_seq(&log->slots[slot].word, &word, 0))
            return;
    }
}

static uint32_t used_slots(const struct shmd_log *log) {
    uint32_t high = load_relaxed(&log->ctl->slot_high);
    return high < log->slot_count ? high : log->slot_count;
}

static bool is_tethered(uint64_t word) {
    return (word & (SHMD_WORD_LIVE | SHMD_WORD_TETHERED)) == (SHMD_WORD_LIVE | SHMD_WORD_TETHERED);
}

uint64_t shmd_slowest_cursor(const struct shmd_log *log, uint64_t head, uint64_t tail) {
    uint64_t slowest = tail;
    for (uint32_t i = 0, used = used_slots(log); i < used; i++) {
        uint64_t word = load_seq(&log->slots[i].word); /* SYNC: pairs with a reader's cursor store (and its copy before) */
        if (!is_tethered(word))
            continue;
        uint64_t position = shmd_word_position(word, tail);
        if (position >= head && position < slowest) /* below head: overtaken while joining; it will look again */
            slowest = position;
    }
    return slowest;
}

/* Clear these flags of the slot's word, if this incarnation has any of them. Whether it had. */
static bool clear_flags(const struct shmd_log *log, uint32_t slot, uint32_t incarnation, uint64_t flags) {
    if (log->ctl == NULL || slot >= log->slot_count)
        return false;
    uint64_t word = load_relaxed(&log->slots[slot].word);
    while (shmd_word_incarnation(word) == incarnation && (word & flags)) {
        /* SYNC: pairs with the holder's own compare-and-swaps: whoever comes second fails, and looks */
        if (cas_seq(&log->slots[slot].word, &word, word & ~flags))
            return true;
    }
    return false;
}

bool shmd_slot_untether(const struct shmd_log *log, uint32_t slot, uint32_t incarnation) {
    return clear_flags(log, slot, incarnation, SHMD_WORD_TETHERED);
}

bool shmd_slot_bury(const struct shmd_log *log, uint32_t slot, uint32_t incarnation) {
    return clear_flags(log, slot, incarnation, SHMD_WORD_LIVE | SHMD_WORD_TETHERED);
}

int shmd_next_live(const struct shmd_log *log, uint32_t *slotp, uint32_t *incarnationp) {
    for (uint32_t used = log->ctl == NULL ? 0 : used_slots(log); *slotp < used; ++*slotp) {
        uint64_t word = load_relaxed(&log->slots[*slotp].word);
        if (!(word & SHMD_WORD_LIVE))
            continue;
        *incarnationp = shmd_word_incarnation(word);
        return SHMD_OK;
    }
    return SHMD_EMPTY;
}

int shmd_slowest_slot(const struct shmd_log *log, uint32_t *slotp, uint32_t *incarnationp) {
    uint64_t head, tail, slowest = UINT64_MAX;
    if (log->ctl == NULL || shmd_log_bounds(log, &head, &tail) != SHMD_OK)
        return SHMD_EMPTY;
    for (uint32_t i = 0, used = used_slots(log); i < used; i++) {
        uint64_t word = load_seq(&log->slots[i].word); /* SYNC: as in shmd_slowest_cursor */
        uint64_t position = shmd_word_position(word, tail);
        if (!is_tethered(word) || position < head || position >= slowest)
            continue;
        slowest = position;
        *slotp = i;
        *incarnationp = shmd_word_incarnation(word);
    }
    return slowest == UINT64_MAX ? SHMD_EMPTY : SHMD_OK;
}

void shmd_bell_write(int fd) {
    static const uint64_t nothing = 0;
    int saved = errno;
    /* Failing means that the descriptor is no bell (any more): then nobody sleeps on it. */
    ssize_t written = write(fd, &nothing, sizeof nothing);
    (void)written;
    errno = saved;
}

void shmd_bell_check(shmd_a64 *armed, shmd_a64 *rung, int fd) {
    uint64_t remembered = load_seq(armed); /* SYNC: pairs with the sleeper's add_seq: our change came before this */
    if (remembered == load_relaxed(rung))
        return;
    shmd_bell_write(fd);
    store_relaxed(rung, remembered);
}
