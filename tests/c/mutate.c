/*
 * Hostile memory: random bytes, words and whole forged values anywhere in log and ctl, under appends, reads, seeks and
 * looks. An error or a wrong value at worst: never an access outside the two segments (they are exactly sized heap
 * blocks, so ASan sees one byte too many), never an endless loop inside one call. mutate ROUNDS [SEED]
 */
#define _GNU_SOURCE
#include <time.h>

#include "check.h"

static uint64_t state;

static uint64_t pick(uint64_t below) {
    state ^= state << 13; /* xorshift64, G. Marsaglia, 2003 */
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static const uint64_t nasty[] = {0, 1, 7, 8, 0x80, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x1ffffffff,
                                 0x200000000, 0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff, 4096, 4088, 1024};

static void mutate(struct topic *t) {
    uint8_t *memory = pick(4) ? t->log_memory : t->ctl_memory;
    size_t bytes = memory == t->log_memory ? t->log_bytes : t->ctl_bytes;
    size_t at = pick(bytes);
    if (memory == t->log_memory && pick(3) == 0) /* aim: the words that steer */
        at = (size_t[]){0x200, 0x240, 0x280, 0x2c0, 0x2c8}[pick(5)];
    else if (memory == t->log_memory && pick(2) == 0) /* aim: the first records after head */
        at = SHMD_HEADER_BYTES + ((load_relaxed(&t->log.header->head) + pick(64)) & t->log.mask);
    uint64_t value = pick(2) ? nasty[pick(sizeof nasty / sizeof *nasty)] : pick(UINT64_MAX);
    size_t width = (size_t[]){1, 4, 8}[pick(3)];
    if (pick(4) == 0)
        value = load_relaxed(&t->log.header->tail) + pick(64) - 32;
    if (at + width > bytes)
        width = bytes - at;
    memcpy(memory + at, &value, width);
}

static uint8_t payload_bytes[4096];
uint64_t checksum;

static void exercise(struct topic *t, struct shmd_appender *a, struct shmd_reader *readers, uint32_t count) {
    struct shmd_bytes payloads[3];
    struct shmd_view view;
    struct shmd_stat stat;
    uint8_t *buffer = NULL;
    size_t buffer_bytes = 0;
    uint64_t seq, from = pick(10000), sum = 0;
    for (unsigned i = 0; i < 3; i++)
        payloads[i] = (struct shmd_bytes){payload_bytes, pick(300)};
    (void)shmd_append(a, payloads, 1 + pick(3), &seq);
    (void)shmd_appender_arm(a);
    for (uint32_t i = 0; i < count; i++) {
        struct shmd_reader *r = &readers[i];
        switch (pick(8)) {
        case 0: (void)shmd_seek_new(r); break;
        case 1: (void)shmd_seek_last(r); break;
        case 2: (void)shmd_seek_all(r); break;
        case 3: (void)shmd_seek_scan(r, pick(2) ? SHMD_SEEK_SEQ : SHMD_SEEK_TIME, pick(1000), 100, &from); break;
        case 4: (void)shmd_join(r); break;
        default: break;
        }
        if (shmd_read_begin(r, pick(2000)) == SHMD_OK) {
            while (shmd_read_next(r, &view) == SHMD_OK)
                for (uint32_t k = 0; k < view.length; k++)
                    sum += view.payload[k];
            shmd_read_end(r);
        }
        (void)shmd_reader_arm(r);
    }
    if (shmd_newest(&t->log, &buffer, &buffer_bytes, &view) == SHMD_OK && view.length > 0)
        sum += view.payload[view.length - 1];
    shmd_log_stat(&t->log, &stat);
    checksum += sum; /* kept, so that the compiler keeps the reads that ASan is to judge */
    free(buffer);
}

static void run_one(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader readers[3];
    uint32_t flags = (uint32_t)pick(4);
    topic_open(&t, 4096, flags, 3);
    shmd_appender_init(&a, &t.log, 9, shmd_bell_of(&t.log, -1));
    for (uint32_t i = 0; i < 3; i++) {
        reader_open(&readers[i], &t, i, 1, i != 2);
        shmd_seek_start(&readers[i]);
        (void)shmd_join(&readers[i]);
    }
    for (unsigned step = 0; step < 20; step++) {
        exercise(&t, &a, readers, 3);
        mutate(&t);
    }
    for (uint32_t i = 0; i < 3; i++) {
        shmd_leave(&readers[i]);
        shmd_reader_free(&readers[i]);
    }
    topic_close(&t);
}

int main(int argc, char **argv) {
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL) | 1u;
    printf("mutate: %lu mutations, seed %llu\n", rounds, (unsigned long long)seed);
    fflush(stdout); /* before anything can crash: the seed repeats it */
    state = seed;
    for (unsigned long done = 0; done < rounds; done += 20)
        run_one();
    puts("mutate: ok");
    return 0;
}
