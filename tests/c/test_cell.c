/*
 * A cell by itself: what it takes for one, what a death at each step leaves, and hostile memory. The core is compiled
 * with its failpoints, and this file says what happens at them. test_cell [ROUNDS [SEED]]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <time.h>

#include "check.h"
#include "failpoint.h"

#define SIZE 45u /* no multiple of 8 */

static int die_at = -1;
static jmp_buf death;

void shmd_failpoint_pass(enum shmd_failpoint point) {
    if ((int)point == die_at) {
        die_at = -1;
        longjmp(death, 1);
    }
}

struct place {
    uint8_t *memory; /* exactly as large as the cell, so that ASan sees one byte too many */
    struct shmd_cell cell;
};

static struct place place_make(size_t size) {
    struct place place;
    place.memory = calloc(1, shmd_cell_bytes(size));
    CHECK(place.memory != NULL && shmd_cell_open(&place.cell, place.memory, shmd_cell_bytes(size), size) == 0);
    return place;
}

static void fill(uint8_t *value, size_t size, uint64_t number) {
    for (size_t i = 0; i < size; i++)
        value[i] = (uint8_t)(number * 31 + i);
}

static bool is_value(const uint8_t *value, size_t size, uint64_t number) {
    for (size_t i = 0; i < size; i++)
        if (value[i] != (uint8_t)(number * 31 + i))
            return false;
    return true;
}

static void cell_gives_each_value_back_whole(void) {
    for (size_t size = 1; size <= 100; size++) {
        struct place place = place_make(size);
        uint8_t value[100], out[100];
        uint64_t version;
        CHECK(shmd_cell_load(&place.cell, out, &version) == SHMD_EMPTY && shmd_cell_version(&place.cell) == 0);
        for (uint64_t number = 1; number < 6; number++) {
            fill(value, size, number);
            CHECK(shmd_cell_store(&place.cell, value) == SHMD_OK);
            CHECK(shmd_cell_load(&place.cell, out, &version) == SHMD_OK && version == number);
            CHECK(is_value(out, size, number) && shmd_cell_version(&place.cell) == number);
            CHECK(shmd_cell_writer(&place.cell) == 0);
        }
        free(place.memory);
    }
}

static void cell_refuses_what_cannot_be_one(void) {
    struct shmd_cell cell;
    uint64_t memory[16] = {0};
    CHECK(shmd_cell_bytes(0) == 0 && shmd_cell_bytes(SHMD_CELL_SIZE_MAX + 1u) == 0 && shmd_cell_bytes(SIZE_MAX) == 0);
    CHECK(shmd_cell_bytes(1) == 48 && shmd_cell_bytes(9) == 64);
    CHECK(shmd_cell_open(&cell, memory, 47, 8) == -EINVAL && shmd_cell_open(&cell, memory, 48, 8) == 0);
    CHECK(shmd_cell_open(&cell, (uint8_t *)memory + 4, 100, 8) == -EINVAL);
    CHECK(shmd_cell_open(&cell, memory, sizeof memory, 0) == -EINVAL);
}

static void cell_leaves_alone_what_is_something_else(void) {
    struct place place = place_make(SIZE);
    uint8_t value[SIZE], out[SIZE];
    uint64_t version;
    size_t words[] = {0, 8, 16};
    for (unsigned i = 0; i < 3; i++) {
        uint8_t before[200] = {0};
        CHECK(shmd_cell_bytes(SIZE) <= sizeof before);
        before[words[i]] = 1;
        memcpy(place.memory, before, shmd_cell_bytes(SIZE));
        CHECK(shmd_cell_store(&place.cell, value) == -EUCLEAN);
        CHECK(memcmp(place.memory, before, shmd_cell_bytes(SIZE)) == 0);
        if (words[i] != 16)
            CHECK(shmd_cell_load(&place.cell, out, &version) == -EUCLEAN);
    }
    free(place.memory);
    struct place small = place_make(8);
    struct shmd_cell larger = small.cell;
    larger.size = 16;
    memset(value, 1, sizeof value);
    CHECK(shmd_cell_store(&small.cell, value) == SHMD_OK);
    CHECK(shmd_cell_load(&larger, out, &version) == -EUCLEAN && shmd_cell_store(&larger, value) == -EUCLEAN);
    CHECK(shmd_cell_load(&small.cell, out, &version) == SHMD_OK && version == 1);
    free(small.memory);
}

/* As the kernel does when a thread dies with the word in its list_op_pending. */
static void bury(struct place *place) {
    CHECK(!shmd_cell_writer(&place->cell) || shmd_lock_declare_dead(&place->cell.header->lock, shmd_cell_writer(&place->cell)));
}

static void die_in_store(const struct shmd_cell *cell, int point, uint64_t number) {
    uint8_t value[SIZE];
    fill(value, SIZE, number);
    die_at = point;
    if (setjmp(death) == 0) {
        (void)shmd_cell_store(cell, value);
        CHECK(!"the writer dies");
    }
}

static void readers_go_on_after_a_death_at_each_step(void) {
    static const int points[] = {SHMD_FP_cell_locked, SHMD_FP_cell_claimed, SHMD_FP_cell_begun, SHMD_FP_cell_half_copied,
                                 SHMD_FP_cell_copied, SHMD_FP_cell_stored,  SHMD_FP_cell_unlocked};
    for (unsigned i = 0; i < sizeof points / sizeof *points; i++) {
        for (uint64_t stores = 0; stores < 4; stores++) {
            struct place place = place_make(SIZE);
            uint8_t value[SIZE], out[SIZE];
            uint64_t version, n;
            for (n = 1; n <= stores; n++) {
                fill(value, SIZE, n);
                CHECK(shmd_cell_store(&place.cell, value) == SHMD_OK);
            }
            die_in_store(&place.cell, points[i], stores + 1);
            bury(&place);
            uint64_t kept = points[i] == SHMD_FP_cell_stored || points[i] == SHMD_FP_cell_unlocked ? stores + 1 : stores;
            int result = shmd_cell_load(&place.cell, out, &version);
            CHECK(kept == 0 ? result == SHMD_EMPTY : result == SHMD_OK && version == kept && is_value(out, SIZE, kept));
            fill(value, SIZE, kept + 1);
            CHECK(shmd_cell_store(&place.cell, value) == SHMD_OK);
            CHECK(shmd_cell_load(&place.cell, out, &version) == SHMD_OK && version == kept + 1 && is_value(out, SIZE, kept + 1));
            free(place.memory);
        }
    }
}

static void reader_gives_up_on_a_writer_that_is_always_at_it(void) {
    struct place place = place_make(SIZE);
    uint8_t value[SIZE] = {0};
    uint64_t version;
    CHECK(shmd_cell_store(&place.cell, value) == SHMD_OK);
    store_relaxed(&place.cell.header->begun, 3);
    CHECK(shmd_cell_load(&place.cell, value, &version) == SHMD_AGAIN);
    store_relaxed(&place.cell.header->lock, 77);
    CHECK(shmd_cell_store(&place.cell, value) == SHMD_BUSY && shmd_cell_writer(&place.cell) == 77);
    free(place.memory);
}

static uint64_t state;

static uint64_t pick(uint64_t below) {
    state ^= state << 13; /* xorshift64, G. Marsaglia, 2003 */
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

/* Anything in memory, any word that steers: an answer at worst, and no byte outside the cell. */
static void hostile_memory_gives_answers(unsigned long rounds) {
    static const uint64_t nasty[] = {0, 1, 2, 3, 0xffffffff, 0x80000000, 0x40000001, UINT64_MAX, UINT64_MAX - 1, INT64_MAX};
    unsigned long sum = 0;
    for (unsigned long round = 0; round < rounds; round++) {
        size_t size = 1 + pick(200);
        struct place place = place_make(size);
        uint8_t value[200] = {0}, out[200];
        uint64_t version;
        for (unsigned step = 0; step < 20; step++) {
            size_t at = pick(2) ? 8 * pick(4) : pick(shmd_cell_bytes(size));
            uint64_t word = pick(2) ? nasty[pick(sizeof nasty / sizeof *nasty)] : pick(UINT64_MAX);
            size_t width = shmd_cell_bytes(size) - at < 8 ? shmd_cell_bytes(size) - at : 8;
            if (pick(3) == 0)
                memcpy(place.memory + at, &word, width);
            if (pick(3) == 0)
                store_relaxed(&place.cell.header->identity, (uint64_t)SHMD_CELL_MAGIC << 32 | size);
            int result = shmd_cell_store(&place.cell, value);
            CHECK(result == SHMD_OK || result == SHMD_BUSY || result == -EUCLEAN);
            result = shmd_cell_load(&place.cell, out, &version);
            CHECK(result == SHMD_OK || result == SHMD_AGAIN || result == SHMD_EMPTY || result == -EUCLEAN);
            sum += result == SHMD_OK ? out[size - 1] : 0u;
        }
        free(place.memory);
    }
    printf("test_cell: %lu hostile rounds, %lu\n", rounds, sum);
}

int main(int argc, char **argv) {
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000;
    state = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL) | 1u;
    printf("test_cell: seed %llu\n", (unsigned long long)state);
    fflush(stdout); /* before anything can crash: the seed repeats it */
    cell_gives_each_value_back_whole();
    cell_refuses_what_cannot_be_one();
    cell_leaves_alone_what_is_something_else();
    readers_go_on_after_a_death_at_each_step();
    reader_gives_up_on_a_writer_that_is_always_at_it();
    hostile_memory_gives_answers(rounds);
    puts("test_cell: ok");
    return 0;
}
