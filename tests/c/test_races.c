/*
 * One instruction against another: the core is compiled with its failpoints, and this file says what happens at them,
 * so that another participant acts exactly there, or the one at work dies there (by longjmp, out of an exclusive topic's
 * append, which holds no lock).
 */
#define _GNU_SOURCE
#include <setjmp.h>

#include "check.h"
#include "failpoint.h"

static void (*at_claim)(void);
static jmp_buf death;

void shmd_failpoint_pass(enum shmd_failpoint point) {
    void (*act)(void) = at_claim;
    if (point != SHMD_FP_append_claimed || act == NULL)
        return;
    at_claim = NULL;
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
    at_claim = read_one;
    CHECK(put(&publisher) == SHMD_OK); /* it saw the new tether, which had moved on by then */
    CHECK(at_claim == NULL);
    read_all();
    end();
}

static void nothing_at_all(void) {}

static void publisher_takes_its_claim_back_for_a_new_tether(void) {
    begin();
    uint64_t head = load_relaxed(&topic.log.header->head);
    at_claim = nothing_at_all;
    CHECK(put(&publisher) == SHMD_FULL && at_claim == NULL);
    CHECK(load_relaxed(&topic.log.header->head) == head && load_relaxed(&topic.log.header->claim) == head);
    read_all();
    CHECK(put(&publisher) == SHMD_OK);
    end();
}

static void new_tether_survives_a_publisher_that_died_with_its_claim(void) {
    begin();
    at_claim = die;
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

int main(void) {
    new_tether_that_reads_beside_a_claim_loses_nothing();
    publisher_takes_its_claim_back_for_a_new_tether();
    new_tether_survives_a_publisher_that_died_with_its_claim();
    puts("test_races: ok");
    return 0;
}
