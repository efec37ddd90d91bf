/*
 * Writers and readers of one cell as threads: a load gives one store's value, whole, and never an older one than before.
 * For ThreadSanitizer every store is preceded by a plain write elsewhere, which the reader of that version reads: it
 * judges the order of the store of index. Torn values the check itself finds. cell_stress [STORES]
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>

#include "check.h"

#define WRITERS 2
#define READERS 2
#define WORDS 128u

struct value {
    uint64_t words[WORDS];
};

static struct shmd_cell cell;
static unsigned stores_each;
static uint64_t *plain; /* written before store n, read after load n; each place once */
static shmd_a64 tickets;
static shmd_a32 writing, whole;

static void *write_values(void *unused) {
    struct value value;
    (void)unused;
    for (unsigned n = 0; n < stores_each;) {
        uint64_t ticket = add_seq(&tickets, 1) + 1; /* SYNC: pairs with nothing: each writer gets its own numbers */
        plain[ticket] = ticket * 3;
        for (unsigned i = 0; i < WORDS; i++)
            value.words[i] = ticket;
        int result;
        while ((result = shmd_cell_store(&cell, &value)) == SHMD_BUSY)
            sched_yield();
        CHECK(result == SHMD_OK);
        n++;
    }
    (void)add_seq(&writing, (uint32_t)-1); /* SYNC: pairs with the load in read_values */
    return NULL;
}

static void *read_values(void *unused) {
    struct value value;
    uint64_t version = 0, last = 0;
    bool over = false;
    (void)unused;
    while (!over) {
        over = load_seq(&writing) == 0; /* SYNC: pairs with the add in write_values: the next load is of the last value */
        int result = shmd_cell_load(&cell, &value, &version);
        if (result == SHMD_EMPTY || result == SHMD_AGAIN) {
            CHECK(!over);
            sched_yield();
            continue;
        }
        CHECK(result == SHMD_OK && version >= last);
        for (unsigned i = 1; i < WORDS; i++)
            CHECK(value.words[i] == value.words[0]);
        CHECK(plain[value.words[0]] == value.words[0] * 3);
        last = version;
        (void)add_seq(&whole, 1); /* SYNC: pairs with main's look after the threads have ended */
    }
    CHECK(last == (uint64_t)stores_each * WRITERS);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t writers[WRITERS], readers[READERS];
    stores_each = argc > 1 ? (unsigned)atoi(argv[1]) : 200000;
    void *memory = page_alloc(shmd_cell_bytes(sizeof(struct value)));
    plain = calloc((size_t)stores_each * WRITERS + 1, sizeof *plain);
    CHECK(plain != NULL);
    CHECK(shmd_cell_open(&cell, memory, shmd_cell_bytes(sizeof(struct value)), sizeof(struct value)) == 0);
    store_relaxed(&writing, WRITERS);
    for (int i = 0; i < READERS; i++)
        CHECK(pthread_create(&readers[i], NULL, read_values, NULL) == 0);
    for (int i = 0; i < WRITERS; i++)
        CHECK(pthread_create(&writers[i], NULL, write_values, NULL) == 0);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i], NULL);
    for (int i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    printf("cell_stress: ok, %u loads\n", load_relaxed(&whole));
    free(plain);
    free(memory);
    return 0;
}
