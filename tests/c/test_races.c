/*
 * One instruction against another: the core is compiled with its failpoints, and this file says what happens at them,
 * so that another participant acts exactly there, or the one at work dies there (by longjmp, out of an exclusive topic's
 * append, which holds no lock).
 */
#define _GNU_SOURCE
#include <setjmp.h>

#include "check.h"
#include "failpoint.h"

static void (*acts[SHMD_FP_COUNT])(void); /* each once, unless it sets itself again */
static jmp_buf death;

void shmd_failpoint_pass(enum shmd_failpoint point) {
    void (*act)(void) = acts[point];
    acts[point] = NULL;
    if (act != NULL)
        act();
}

static struct topic topic;
static struct shmd_appender publisher;
static struct shmd_reader reader;
static uint64_t expected; /* the reader's next sequence number */

static int put(struct shmd_appender *a) {
    static const uint8_t bytes[100];
    struct shmd_bytes payload = {bytes, sizeof bytes};
    uint64_t seq;
    return shmd_append(a, &payload, 1, &seq);
}

/* Read what there is: whole, in order, nothing lost. */
static void read_all(void) {
    struct shmd_view view;
    int result;
    while ((result = shmd_read_begin(&reader, 300)) == SHMD_OK) {
        while ((result = shmd_read_next(&reader, &view)) == SHMD_OK)
            CHECK(view.lost == 0 && view.seq == expected++);
        CHECK(result == SHMD_EMPTY);
        shmd_read_end(&reader);
    }
    CHECK(result == SHMD_EMPTY && reader.tethered);
}

static void read_one(void) {
    struct shmd_view view;
    CHECK(shmd_read_begin(&reader, 8) == SHMD_OK && shmd_read_next(&reader, &view) == SHMD_OK);
    CHECK(view.lost == 0 && view.seq == expected++);
    shmd_read_end(&reader);
}

static void die(void) { longjmp(death, 1); }

/* A publisher that has looked at the cursors, a full ring, and then a tether at the oldest record. */
static void begin(void) {
    topic_open(&topic, 4096, SHMD_FLAG_WAIT | SHMD_FLAG_EXCLUSIVE, 4);
    shmd_appender_init(&publisher, &topic.log, 3, shmd_bell_of(&topic.log, -1));
    while (load_relaxed(&topic.log.header->head) == 0)
        CHECK(put(&publisher) == SHMD_OK);
    reader_open(&reader, &topic, 0, 1, true);
    CHECK(shmd_seek_all(&reader) == SHMD_OK && shmd_join(&reader) == SHMD_OK);
    expected = reader.next_seq;
}

static void end(void) {
    shmd_reader_free(&reader);
    topic_close(&topic);
}

static void new_tether_that_reads_beside_a_claim_loses_nothing(void) {
    begin();
    acts[SHMD_FP_append_claimed] = read_one;
    CHECK(put(&publisher) == SHMD_OK); /* it saw the new tether, which had moved on by then */
    CHECK(acts[SHMD_FP_append_claimed] == NULL);
    read_all();
    end();
}

static void nothing_at_all(void) {}

static void publisher_takes_its_claim_back_for_a_new_tether(void) {
    begin();
    uint64_t head = load_relaxed(&topic.log.header->head);
    acts[SHMD_FP_append_claimed] = nothing_at_all;
    CHECK(put(&publisher) == SHMD_FULL && acts[SHMD_FP_append_claimed] == NULL);
    CHECK(load_relaxed(&topic.log.header->head) == head && load_relaxed(&topic.log.header->claim) == head);
    read_all();
    CHECK(put(&publisher) == SHMD_OK);
    end();
}

static void new_tether_survives_a_publisher_that_died_with_its_claim(void) {
    begin();
    acts[SHMD_FP_append_claimed] = die;
    if (setjmp(death) == 0) {
        (void)put(&publisher);
        CHECK(!"the publisher dies");
    }
    struct shmd_appender next;
    shmd_appender_init(&next, &topic.log, 4, shmd_bell_of(&topic.log, -1));
    CHECK(put(&next) == SHMD_FULL);
    read_all();
    CHECK(put(&next) == SHMD_OK);
    read_all();
    end();
}

/* The length of the record at head becomes what no record can have. */
static void grow_oldest(void) {
    uint64_t offset = load_relaxed(&topic.log.header->head) & topic.log.mask;
    shmd_a64 *first = (shmd_a64 *)(void *)(topic.log.ring + offset);
    store_relaxed(first, (load_relaxed(first) & ~(uint64_t)0xffffffffu) | 0xffffff00u);
}

static void seek_goes_by_the_length_that_it_checked(void) {
    uint64_t from = 0;
    begin();
    acts[SHMD_FP_seek_checked] = grow_oldest;
    CHECK(shmd_seek_scan(&reader, SHMD_SEEK_SEQ, expected + 1, 1, &from) == SHMD_AGAIN);
    CHECK(from == load_relaxed(&topic.log.header->head) + shmd_record_bytes(100));
    CHECK(shmd_seek_scan(&reader, SHMD_SEEK_SEQ, expected + 1, 1, &from) == SHMD_OK && reader.next_seq == expected + 1);
    end();
}

static void publish_another(void) {
    if (++expected < 100)
        acts[SHMD_FP_read_rung] = publish_another;
    CHECK(put(&publisher) == SHMD_OK);
}

static void reader_that_skips_does_not_run_after_the_tail_for_ever(void) {
    struct shmd_view view;
    uint64_t from = 0;
    topic_open(&topic, 4096, SHMD_FLAG_WAIT | SHMD_FLAG_EXCLUSIVE, 4);
    shmd_appender_init(&publisher, &topic.log, 3, shmd_bell_of(&topic.log, -1));
    reader_open(&reader, &topic, 0, 1, true);
    CHECK(shmd_seek_scan(&reader, SHMD_SEEK_SEQ, 1000, 1, &from) == SHMD_OK && shmd_join(&reader) == SHMD_OK);
    expected = 0;
    publish_another();
    CHECK(shmd_read_first(&reader, 8, &view) == SHMD_EMPTY && expected == 2); /* one came while it read, and waits */
    CHECK(shmd_reader_arm(&reader) == SHMD_AGAIN);
    acts[SHMD_FP_read_rung] = NULL;
    end();
}

int main(void) {
    new_tether_that_reads_beside_a_claim_loses_nothing();
    publisher_takes_its_claim_back_for_a_new_tether();
    new_tether_survives_a_publisher_that_died_with_its_claim();
    seek_goes_by_the_length_that_it_checked();
    reader_that_skips_does_not_run_after_the_tail_for_ever();
    puts("test_races: ok");
    return 0;
}
