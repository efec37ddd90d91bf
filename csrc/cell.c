/*
 * A cell: one value that a writer replaces as a whole, and that any number of readers copy without a lock.
 *
 *      buffer 0   | value 6 |          index = 6: readers take buffer 0
 *      buffer 1   | value 5 |          begun = 7: it is being overwritten by value 7
 *
 * Value n lies in buffer n & 1. A store writes into the buffer that readers are not sent to, then stores index: one
 * 8-byte store, so that a writer killed anywhere leaves the last value or its own, never a mixture. What it left in the
 * other buffer nobody looks at, and the next store overwrites it.
 *
 * A reader loads index (n), copies buffer n & 1, and then looks at begun. Its copy is whole unless somebody has begun to
 * overwrite it, which is store n + 2; so it has the time of a whole store between two others before it must try again.
 * (To look at index again instead would throw away copies that store n + 1 did not touch.)
 *
 * Writers take turns under a lock word that the kernel frees when its owner dies (lock.c). So a second writer, which is
 * a mistake in most programs, does no harm, and a new one need not know how the last one ended. index and begun never
 * go back. docs/models/cell.pml searches it all, with deaths at every step.
 *
 * A hostile writer can give readers any value, or keep them trying CELL_TRIES times; they read only the two buffers, and
 * how large those are they know themselves.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "failpoint.h"
#include "shmd.h"

/* Overtaken so often in a row by whole stores, a reader is told, instead of being kept: a writer at full speed, and no
 * slower than its readers, overtakes about every other copy. */
#define CELL_TRIES 64u

/* The checks of the checks: a build with one of these weakened must fail tests/c/cell_stress.c. */
#ifdef SHMD_WEAKEN_CELL_INDEX
#define INDEX_ORDER memory_order_relaxed
#else
#define INDEX_ORDER memory_order_release
#endif
#ifdef SHMD_WEAKEN_CELL_BEGUN
#define BEGUN_MAX UINT64_MAX
#else
#define BEGUN_MAX 1u
#endif

int shmd_cell_open(struct shmd_cell *cellp, void *memory, size_t bytes, size_t size) {
    size_t needed = shmd_cell_bytes(size);
    if (needed == 0 || bytes < needed || ((uintptr_t)memory & 7u) != 0)
        return -EINVAL;
    *cellp = (struct shmd_cell){
        .header = memory,
        .buffers = (shmd_a64 *)(void *)((uint8_t *)memory + sizeof(struct shmd_cell_header)),
        .size = size,
    };
    return 0;
}

static uint64_t identity_of(const struct shmd_cell *cell) { return (uint64_t)SHMD_CELL_MAGIC << 32 | cell->size; }

static shmd_a64 *buffer_of(const struct shmd_cell *cell, uint64_t number) {
    return cell->buffers + (number & 1u) * ((cell->size + 7u) / 8u);
}

/* Bytes [from, to) of the value: from is a multiple of 8, and to one too, or the value's end. */
static void write_words(shmd_a64 *buffer, const uint8_t *value, size_t from, size_t to) {
    for (size_t at = from; at < to; at += 8) {
        uint64_t word = 0;
        memcpy(&word, value + at, to - at < 8 ? to - at : 8);
        store_relaxed(buffer + at / 8, word);
    }
}

static void read_words(shmd_a64 *buffer, uint8_t *value, size_t size) {
    for (size_t at = 0; at < size; at += 8) {
        uint64_t word = load_relaxed(buffer + at / 8);
        memcpy(value + at, &word, size - at < 8 ? size - at : 8);
    }
}

/* The first writer says what lies here; only zeros may be taken for a new cell. Under the lock. */
static bool claim_place(const struct shmd_cell *cell) {
    struct shmd_cell_header *header = cell->header;
    uint64_t seen = load_relaxed(&header->identity);
    if (seen == 0 && load_relaxed(&header->index) == 0 && load_relaxed(&header->begun) == 0) {
        store_relaxed(&header->identity, identity_of(cell)); /* readers go by index, and see this before it */
        return true;
    }
    return seen == identity_of(cell);
}

static void write_value(const struct shmd_cell *cell, const uint8_t *value) {
    struct shmd_cell_header *header = cell->header;
    uint64_t number = load_relaxed(&header->index) + 1; /* the lock orders it after the last writer's store */
    shmd_a64 *buffer = buffer_of(cell, number);
    size_t half = cell->size / 16 * 8;
    store_relaxed(&header->begun, number); /* ordered by the fence below */
    SHMD_FAILPOINT(cell_begun);
    fence_release(); /* SYNC: pairs with the acquire fence in shmd_cell_load: our words imply our begun */
    write_words(buffer, value, 0, half);
    SHMD_FAILPOINT(cell_half_copied);
    write_words(buffer, value, half, cell->size);
    SHMD_FAILPOINT(cell_copied);
    /* SYNC: INDEX_ORDER, a release, pairs with the acquire of index in shmd_cell_load */
    atomic_store_explicit(&header->index, number, INDEX_ORDER);
    SHMD_FAILPOINT(cell_stored);
}

int shmd_cell_store(const struct shmd_cell *cell, const void *value) {
    bool taken; /* from a dead writer or not: there is nothing to repair */
    uint64_t seen = load_relaxed(&cell->header->identity);
    if (seen != 0 && seen != identity_of(cell))
        return -EUCLEAN;
    if (shmd_lock(&cell->header->lock, &taken) != SHMD_OK)
        return SHMD_BUSY;
    SHMD_FAILPOINT(cell_locked);
    bool ours = claim_place(cell);
    if (ours) {
        SHMD_FAILPOINT(cell_claimed);
        write_value(cell, value);
    }
    shmd_unlock(&cell->header->lock);
    SHMD_FAILPOINT(cell_unlocked);
    return ours ? SHMD_OK : -EUCLEAN;
}

int shmd_cell_load(const struct shmd_cell *cell, void *value, uint64_t *versionp) {
    struct shmd_cell_header *header = cell->header;
    for (unsigned try = 0; try < CELL_TRIES; try++) {
        uint64_t number = load_acquire(&header->index); /* SYNC: pairs with the store of index in write_value */
        uint64_t identity = load_relaxed(&header->identity);
        if (identity != identity_of(cell))
            return identity == 0 && number == 0 ? SHMD_EMPTY : -EUCLEAN;
        if (number == 0)
            return SHMD_EMPTY;
        read_words(buffer_of(cell, number), value, cell->size);
        fence_acquire(); /* SYNC: pairs with the release fence in write_value */
        if (load_relaxed(&header->begun) - number <= BEGUN_MAX) {
            *versionp = number;
            return SHMD_OK;
        }
        cpu_relax();
    }
    return SHMD_AGAIN;
}

/* SYNC: pairs with the store of index in write_value: who sees it go up finds the new value, or a newer one */
uint64_t shmd_cell_version(const struct shmd_cell *cell) { return load_acquire(&cell->header->index); }

uint32_t shmd_cell_writer(const struct shmd_cell *cell) { return load_relaxed(&cell->header->lock) & 0x3fffffffu; }
