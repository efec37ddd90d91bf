/* What the C tests share: a check that says where it failed, and a topic in private, exactly sized memory. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shmd.h"

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);   \
            exit(1);                                                                  \
        }                                                                             \
    } while (0)

struct topic {
    struct shmd_log log;
    struct shmd_identity identity;
    void *log_memory, *ctl_memory;
    size_t log_bytes, ctl_bytes;
};

static inline void *page_alloc(size_t bytes) {
    void *memory = NULL; /* rounded to pages by the kernel in real life; exact here, so that ASan sees one byte too many */
    CHECK(posix_memalign(&memory, 4096, bytes) == 0);
    memset(memory, 0, bytes);
    return memory;
}

static inline void topic_open(struct topic *t, uint64_t capacity, uint32_t flags, uint32_t slots) {
    memset(t, 0, sizeof *t);
    t->identity = (struct shmd_identity){.capacity = capacity, .flags = flags, .name = "t", .name_bytes = 1};
    memset(t->identity.topic_id, 7, 16);
    t->log_bytes = SHMD_HEADER_BYTES + capacity;
    t->ctl_bytes = shmd_ctl_bytes(slots);
    t->log_memory = page_alloc(t->log_bytes);
    t->ctl_memory = page_alloc(t->ctl_bytes);
    CHECK(shmd_log_format(t->log_memory, t->log_bytes, &t->identity) == 0);
    CHECK(shmd_ctl_format(t->ctl_memory, t->ctl_bytes, slots, t->identity.topic_id) == 0);
    CHECK(shmd_log_open(&t->log, t->log_memory, t->log_bytes, t->ctl_memory, t->ctl_bytes, &t->identity) == 0);
}

static inline void topic_close(struct topic *t) {
    free(t->log_memory);
    free(t->ctl_memory);
}

static inline void reader_open(struct shmd_reader *r, struct topic *t, uint32_t slot, uint32_t incarnation, bool tethered) {
    CHECK(shmd_slot_grant(&t->log, slot, incarnation, false, false) == 0);
    CHECK(shmd_reader_init(r, &t->log, slot, incarnation, tethered, -1) == 0);
}

#endif
