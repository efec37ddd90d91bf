/*
 * The log as a whole: formatting, checking what was attached, and looking at it from outside.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "shmd.h"

#define BOUNDS_TRIES 64u
#define NEWEST_TRIES 64u

bool shmd_capacity_ok(uint64_t capacity) {
    return capacity >= SHMD_CAPACITY_MIN && capacity <= SHMD_CAPACITY_MAX && (capacity & (capacity - 1)) == 0;
}

uint64_t shmd_payload_max(uint64_t capacity) { return capacity / 4 - SHMD_RECORD_OVERHEAD; }

int shmd_log_format(void *log, size_t log_bytes, const struct shmd_identity *identity) {
    struct shmd_log_header *header = log;
    if (!shmd_capacity_ok(identity->capacity) || identity->name_bytes >= SHMD_NAME_BYTES ||
        log_bytes < SHMD_HEADER_BYTES + identity->capacity)
        return -EINVAL;
    memset(log, 0, SHMD_HEADER_BYTES);
    header->version = SHMD_LAYOUT_MAJOR << 16 | SHMD_LAYOUT_MINOR;
    header->header_bytes = SHMD_HEADER_BYTES;
    header->capacity = identity->capacity;
    header->flags = identity->flags;
    header->name_bytes = (uint32_t)identity->name_bytes;
    memcpy(header->instance_id, identity->instance_id, 16);
    memcpy(header->topic_id, identity->topic_id, 16);
    header->created_ns = identity->created_ns;
    memcpy(header->name, identity->name, identity->name_bytes);
    store_release(&header->magic, SHMD_LOG_MAGIC); /* SYNC: pairs with the acquire of magic in shmd_log_open */
    return 0;
}

static bool log_matches(const struct shmd_log_header *header, size_t log_bytes, const struct shmd_identity *identity) {
    /* SYNC: pairs with the release in shmd_log_format */
    return load_acquire(&header->magic) == SHMD_LOG_MAGIC && header->version >> 16 == SHMD_LAYOUT_MAJOR &&
           header->header_bytes == SHMD_HEADER_BYTES && header->capacity == identity->capacity &&
           header->flags == identity->flags && memcmp(header->topic_id, identity->topic_id, 16) == 0 &&
           log_bytes >= SHMD_HEADER_BYTES + identity->capacity;
}

int shmd_log_open(struct shmd_log *logp, void *log, size_t log_bytes, void *ctl, size_t ctl_bytes,
                  const struct shmd_identity *identity) {
    if (!shmd_capacity_ok(identity->capacity) || log_bytes < SHMD_HEADER_BYTES)
        return -EUCLEAN;
    if (!log_matches(log, log_bytes, identity))
        return -EUCLEAN;
    *logp = (struct shmd_log){
        .header = log,
        .ring = (uint8_t *)log + SHMD_HEADER_BYTES,
        .capacity = identity->capacity,
        .mask = identity->capacity - 1,
        .payload_max = shmd_payload_max(identity->capacity),
        .flags = identity->flags,
    };
    if (ctl == NULL)
        return 0;
    struct shmd_ctl_header *header = ctl;
    if (ctl_bytes < SHMD_HEADER_BYTES)
        return -EUCLEAN;
    /* SYNC: pairs with the release in shmd_ctl_format */
    if (load_acquire(&header->magic) != SHMD_CTL_MAGIC)
        return -EUCLEAN;
    if (header->version >> 16 != SHMD_LAYOUT_MAJOR || header->header_bytes != SHMD_HEADER_BYTES ||
        memcmp(header->topic_id, identity->topic_id, 16) != 0)
        return -EUCLEAN;
    uint32_t slot_count = *(const uint32_t *)&header->slot_count;
    if (slot_count == 0 || slot_count > SHMD_SLOTS_MAX || ctl_bytes != shmd_ctl_bytes(slot_count))
        return -EUCLEAN; /* a smaller number, too: the daemon grants slots by what it made */
    logp->ctl = header;
    logp->slots = (struct shmd_slot *)(void *)((uint8_t *)ctl + SHMD_HEADER_BYTES);
    logp->slot_count = slot_count;
    return 0;
}

int shmd_log_bounds(const struct shmd_log *log, uint64_t *headp, uint64_t *tailp) {
    for (unsigned try = 0; try < BOUNDS_TRIES; try++) {
        uint64_t tail = load_acquire(&log->header->tail); /* SYNC: pairs with the commit in append.c */
        /* SYNC: pairs with the release fence after head is stored in append.c */
        uint64_t head = load_acquire(&log->header->head);
        if (((tail | head) & 7u) == 0 && head <= tail && tail - head <= log->capacity) {
            *headp = head;
            *tailp = tail;
            return SHMD_OK;
        }
        if (load_relaxed(&log->header->tail) == tail && load_relaxed(&log->header->head) == head)
            return -EUCLEAN; /* nobody is at work: it is simply wrong */
    }
    return SHMD_AGAIN;
}

bool shmd_is_padding(const struct shmd_log *log, uint64_t kind, uint64_t length, uint64_t offset) {
    return kind == SHMD_KIND_PADDING && length == log->capacity - offset && length < log->capacity / 4;
}

uint64_t shmd_stored_bytes(const struct shmd_log *log, uint64_t position, uint64_t tail, uint64_t *lengthp) {
    uint64_t offset = position & log->mask;
    uint64_t first = load_relaxed((shmd_a64 *)(void *)(log->ring + offset));
    uint64_t length = first & 0xffffffffu;
    uint64_t kind = first >> 32;
    uint64_t bytes = 0;
    if (shmd_is_padding(log, kind, length, offset))
        bytes = length;
    else if (kind == SHMD_KIND_DATA && length <= log->payload_max)
        bytes = shmd_record_bytes(length);
    if (bytes == 0 || bytes > tail - position || offset + bytes > log->capacity)
        return 0;
    *lengthp = kind == SHMD_KIND_DATA ? length : UINT64_MAX;
    return bytes;
}

void shmd_copy_out(const struct shmd_log *log, void *to, uint64_t position, uint64_t bytes) {
    uint8_t *out = to;
    while (bytes > 0) {
        uint64_t offset = position & log->mask;
        uint64_t run = log->capacity - offset < bytes ? log->capacity - offset : bytes;
        shmd_a64 *words = (shmd_a64 *)(void *)(log->ring + offset);
        for (uint64_t i = 0; i < run / 8; i++) {
            uint64_t word = load_relaxed(words + i);
            memcpy(out + i * 8, &word, 8);
        }
        out += run;
        position += run;
        bytes -= run;
    }
}

int shmd_last_record(const struct shmd_log *log, uint64_t head, uint64_t tail, struct shmd_record *recordp,
                     uint64_t *startp) {
    if (tail == 0)
        return SHMD_EMPTY;
    uint64_t trailer = load_relaxed((shmd_a64 *)(void *)(log->ring + ((tail - 8) & log->mask)));
    uint64_t length = trailer >> 32;
    if (length > log->payload_max)
        return -EUCLEAN;
    uint64_t bytes = shmd_record_bytes(length);
    uint64_t start = tail - bytes;
    if (bytes > tail - head || (start & log->mask) + bytes > log->capacity)
        return -EUCLEAN;
    shmd_copy_out(log, recordp, start, sizeof *recordp);
    if (recordp->kind != SHMD_KIND_DATA || recordp->length != length || recordp->seq == 0)
        return -EUCLEAN;
    *startp = start;
    return SHMD_OK;
}

/* The first data record at or after position. */
static uint64_t first_seq(const struct shmd_log *log, uint64_t position, uint64_t tail) {
    for (unsigned i = 0; i < 2 && position < tail; i++) {
        uint64_t length = 0;
        uint64_t bytes = shmd_stored_bytes(log, position, tail, &length);
        if (bytes == 0)
            return 0;
        if (length != UINT64_MAX) {
            struct shmd_record record;
            shmd_copy_out(log, &record, position, sizeof record);
            return record.seq;
        }
        position += bytes;
    }
    return 0;
}

void shmd_log_stat(const struct shmd_log *log, struct shmd_stat *statp) {
    struct shmd_log_header *header = log->header;
    *statp = (struct shmd_stat){
        .published = load_relaxed(&header->published),
        .published_bytes = load_relaxed(&header->published_bytes),
        .takeovers = load_relaxed(&header->takeovers),
        .lock_owner_tid = load_relaxed(&header->lock) & 0x3fffffffu,
    };
    for (unsigned try = 0; try < BOUNDS_TRIES; try++) {
        struct shmd_record last;
        uint64_t start;
        if (shmd_log_bounds(log, &statp->head, &statp->tail) != SHMD_OK)
            return;
        if (shmd_last_record(log, statp->head, statp->tail, &last, &start) != SHMD_OK)
            last = (struct shmd_record){0};
        statp->first_seq = first_seq(log, statp->head, statp->tail);
        statp->last_seq = last.seq;
        statp->last_time_ns = last.time_ns;
        fence_acquire(); /* SYNC: pairs with the release fence after head is stored in append.c */
        if (load_relaxed(&header->head) == statp->head)
            return;
    }
}

int shmd_newest(const struct shmd_log *log, uint8_t **bufferp, size_t *buffer_bytesp, struct shmd_view *viewp) {
    for (unsigned try = 0; try < NEWEST_TRIES; try++) {
        uint64_t head, tail, start = 0;
        struct shmd_record record;
        int result = shmd_log_bounds(log, &head, &tail);
        if (result != SHMD_OK)
            return result;
        result = shmd_last_record(log, head, tail, &record, &start);
        if (result == SHMD_EMPTY)
            return result;
        if (result == SHMD_OK) {
            uint64_t bytes = tail - start;
            if (bytes > *buffer_bytesp) {
                uint8_t *grown = realloc(*bufferp, bytes);
                if (grown == NULL)
                    return -ENOMEM;
                *bufferp = grown;
                *buffer_bytesp = bytes;
            }
            shmd_copy_out(log, *bufferp, start, bytes);
        }
        fence_acquire(); /* SYNC: pairs with the release fence after head is stored in append.c */
        if (result != SHMD_OK) { /* overtaken, or simply wrong: a publisher at work moves tail */
            if (load_relaxed(&log->header->tail) != tail)
                continue;
            return result;
        }
        if (load_relaxed(&log->header->head) > start)
            continue; /* what was read may be anything */
        *viewp = (struct shmd_view){
            .payload = *bufferp + sizeof record,
            .length = record.length,
            .publisher = record.publisher,
            .seq = record.seq,
            .time_ns = record.time_ns,
        };
        return SHMD_OK;
    }
    return SHMD_AGAIN;
}
