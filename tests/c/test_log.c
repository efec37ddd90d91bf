/* The log, one thread: each law of append, read, seek and recovery, on rings so small that everything wraps. */
#define _GNU_SOURCE
#include <errno.h>

#include "check.h"

static uint8_t pattern[8192];

static int put(struct shmd_appender *a, size_t size, uint64_t *seqp) {
    struct shmd_bytes payload = {pattern, size};
    return shmd_append(a, &payload, 1, seqp);
}

/* Every size at every offset of the ring, read back at once. */
static void every_size_survives_every_offset(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader r;
    struct shmd_view view;
    topic_open(&t, 4096, SHMD_FLAG_WAIT, 4);
    shmd_appender_init(&a, &t.log, 5, shmd_bell_of(&t.log, -1));
    reader_open(&r, &t, 0, 1, true);
    shmd_seek_start(&r);
    CHECK(shmd_join(&r) == SHMD_OK);
    uint64_t want = 0, seq;
    for (size_t size = 0; size <= t.log.payload_max; size += 3) {
        for (unsigned nudge = 0; nudge < 9; nudge++) {
            CHECK(put(&a, nudge == 0 ? size : nudge, &seq) == SHMD_OK);
            CHECK(seq == ++want);
            CHECK(shmd_read_begin(&r, 65536) == SHMD_OK);
            CHECK(shmd_read_next(&r, &view) == SHMD_OK);
            CHECK(view.seq == want && view.lost == 0 && view.publisher == 5);
            CHECK(view.length == (nudge == 0 ? size : nudge) && memcmp(view.payload, pattern, view.length) == 0);
            CHECK(shmd_read_next(&r, &view) == SHMD_EMPTY);
            shmd_read_end(&r);
            CHECK(r.tethered);
        }
    }
    CHECK(put(&a, t.log.payload_max + 1, &seq) == -EMSGSIZE);
    CHECK(shmd_read_begin(&r, 65536) == SHMD_EMPTY);
    shmd_reader_free(&r);
    topic_close(&t);
}

static void full_topic_refuses_until_the_slowest_reads(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader fast, slow;
    struct shmd_view view;
    uint64_t seq, count = 0;
    topic_open(&t, 4096, SHMD_FLAG_WAIT, 4);
    shmd_appender_init(&a, &t.log, 1, shmd_bell_of(&t.log, -1));
    reader_open(&fast, &t, 0, 1, true);
    reader_open(&slow, &t, 1, 1, true);
    shmd_seek_start(&fast);
    shmd_seek_start(&slow);
    CHECK(shmd_join(&fast) == SHMD_OK && shmd_join(&slow) == SHMD_OK);
    while (put(&a, 100, &seq) == SHMD_OK)
        count++;
    CHECK(count > 20 && put(&a, 100, &seq) == SHMD_FULL);
    while (shmd_read_begin(&fast, 256) == SHMD_OK) {
        while (shmd_read_next(&fast, &view) == SHMD_OK) {}
        shmd_read_end(&fast);
    }
    CHECK(fast.next_seq == count + 1 && put(&a, 100, &seq) == SHMD_FULL);
    CHECK(shmd_appender_arm(&a) == SHMD_OK);
    CHECK(shmd_read_begin(&slow, 256) == SHMD_OK && shmd_read_next(&slow, &view) == SHMD_OK && view.seq == 1);
    while (shmd_read_next(&slow, &view) == SHMD_OK) {}
    shmd_read_end(&slow);
    CHECK(shmd_appender_arm(&a) == SHMD_AGAIN && put(&a, 100, &seq) == SHMD_OK && seq == count + 1);
    while (put(&a, 100, &seq) == SHMD_OK) {}
    shmd_leave(&slow); /* one who leaves holds nobody */
    CHECK(put(&a, 100, &seq) == SHMD_OK);
    while (put(&a, 100, &seq) == SHMD_OK) {}
    shmd_slot_release(&t.log, 0, 1); /* and neither does one whose slot was taken */
    CHECK(put(&a, 100, &seq) == SHMD_OK);
    CHECK(shmd_read_begin(&fast, 64) == SHMD_OK);
    CHECK(shmd_read_next(&fast, &view) == SHMD_OK);
    shmd_read_end(&fast);
    CHECK(!fast.tethered && load_relaxed(&t.log.slots[0].word) == 0);
    shmd_reader_free(&fast);
    shmd_reader_free(&slow);
    topic_close(&t);
}

static void lapped_reader_counts_exactly_what_it_lost(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader r;
    struct shmd_view view;
    uint64_t seq = 0, received = 0, lost = 0;
    topic_open(&t, 4096, 0, 4);
    shmd_appender_init(&a, &t.log, 1, shmd_bell_of(&t.log, -1));
    reader_open(&r, &t, 0, 1, true);
    shmd_seek_start(&r);
    CHECK(shmd_join(&r) == SHMD_OK && !r.tethered);
    for (unsigned round = 0; round < 500; round++) {
        for (unsigned i = 0; i < round % 97; i++)
            CHECK(put(&a, (round * 7 + i * 13) % 400, &seq) == SHMD_OK);
        if (shmd_read_begin(&r, 512) != SHMD_OK)
            continue;
        while (shmd_read_next(&r, &view) == SHMD_OK) {
            received++;
            lost += view.lost;
            CHECK(view.seq == received + lost);
        }
        shmd_read_end(&r);
    }
    while (shmd_read_begin(&r, 512) == SHMD_OK) {
        while (shmd_read_next(&r, &view) == SHMD_OK) {
            received++;
            lost += view.lost;
        }
        shmd_read_end(&r);
    }
    CHECK(received + lost == seq && lost > 0 && received > 0);
    CHECK(r.lost_total == lost && load_relaxed(&t.log.slots[0].lost) == lost);
    shmd_reader_free(&r);
    topic_close(&t);
}

static void batch_is_all_or_nothing(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader r;
    struct shmd_view view;
    struct shmd_bytes payloads[5];
    uint64_t seq;
    topic_open(&t, 4096, SHMD_FLAG_WAIT, 4);
    shmd_appender_init(&a, &t.log, 1, shmd_bell_of(&t.log, -1));
    reader_open(&r, &t, 0, 1, true);
    shmd_seek_start(&r);
    CHECK(shmd_join(&r) == SHMD_OK);
    for (unsigned i = 0; i < 5; i++)
        payloads[i] = (struct shmd_bytes){pattern + i, 100 + i};
    for (unsigned round = 0; round < 200; round++) {
        CHECK(shmd_append(&a, payloads, 5, &seq) == SHMD_OK && seq == (round + 1) * 5);
        for (unsigned i = 0; i < 5;) {
            CHECK(shmd_read_begin(&r, 300) == SHMD_OK);
            while (shmd_read_next(&r, &view) == SHMD_OK) {
                CHECK(view.length == 100 + i && memcmp(view.payload, pattern + i, view.length) == 0);
                i++;
            }
            shmd_read_end(&r);
        }
    }
    for (unsigned i = 0; i < 5; i++)
        payloads[i].size = 400; /* each fits, together they are over a quarter */
    CHECK(shmd_append(&a, payloads, 5, &seq) == -EMSGSIZE);
    uint64_t tail = load_relaxed(&t.log.header->tail);
    for (unsigned i = 0; i < 5; i++)
        payloads[i].size = 120;
    while (shmd_append(&a, payloads, 5, &seq) == SHMD_OK)
        tail = load_relaxed(&t.log.header->tail);
    CHECK(load_relaxed(&t.log.header->tail) == tail);
    shmd_reader_free(&r);
    topic_close(&t);
}

static void seeks_find_their_record(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader r;
    struct shmd_view view;
    uint64_t seq, from = 0;
    topic_open(&t, 4096, 0, 4);
    shmd_appender_init(&a, &t.log, 1, shmd_bell_of(&t.log, -1));
    reader_open(&r, &t, 0, 1, false);
    CHECK(shmd_seek_new(&r) == SHMD_OK && r.next_seq == 1);
    CHECK(shmd_seek_last(&r) == SHMD_OK && r.position == 0);
    for (unsigned i = 0; i < 200; i++)
        CHECK(put(&a, 90, &seq) == SHMD_OK);
    CHECK(shmd_seek_new(&r) == SHMD_OK && r.next_seq == 201 && shmd_read_begin(&r, 4096) == SHMD_EMPTY);
    CHECK(shmd_seek_last(&r) == SHMD_OK && shmd_read_begin(&r, 4096) == SHMD_OK);
    CHECK(shmd_read_next(&r, &view) == SHMD_OK && view.seq == 200 && view.lost == 0);
    CHECK(shmd_seek_all(&r) == SHMD_OK && shmd_read_begin(&r, 4096) == SHMD_OK);
    CHECK(shmd_read_next(&r, &view) == SHMD_OK && view.lost == 0 && view.seq > 150);
    uint64_t oldest = view.seq, oldest_time = view.time_ns;
    int result;
    while ((result = shmd_seek_scan(&r, SHMD_SEEK_SEQ, 190, 3, &from)) == SHMD_AGAIN) {}
    CHECK(result == SHMD_OK && shmd_read_begin(&r, 200) == SHMD_OK && shmd_read_next(&r, &view) == SHMD_OK);
    CHECK(view.seq == 190 && view.lost == 0);
    from = 0;
    CHECK(shmd_seek_scan(&r, SHMD_SEEK_SEQ, 5, 1000, &from) == SHMD_OK);
    CHECK(shmd_read_begin(&r, 200) == SHMD_OK && shmd_read_next(&r, &view) == SHMD_OK);
    CHECK(view.seq == oldest && view.lost == oldest - 5);
    from = 0;
    CHECK(shmd_seek_scan(&r, SHMD_SEEK_SEQ, 203, 1000, &from) == SHMD_OK && shmd_read_begin(&r, 200) == SHMD_EMPTY);
    for (unsigned i = 0; i < 4; i++)
        CHECK(put(&a, 9, &seq) == SHMD_OK);
    CHECK(shmd_read_begin(&r, 4096) == SHMD_OK && shmd_read_next(&r, &view) == SHMD_OK && view.seq == 203 && view.lost == 0);
    from = 0;
    CHECK(shmd_seek_scan(&r, SHMD_SEEK_TIME, oldest_time, 1000, &from) == SHMD_OK);
    CHECK(shmd_seek_scan(&r, SHMD_SEEK_TIME, UINT64_MAX, 1000, &from) == SHMD_OK);
    CHECK(shmd_read_begin(&r, 200) == SHMD_EMPTY);
    shmd_reader_free(&r);
    topic_close(&t);
}

static void newest_is_the_last_committed(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_view view;
    uint8_t *buffer = NULL;
    size_t buffer_bytes = 0;
    uint64_t seq;
    topic_open(&t, 4096, 0, 4);
    shmd_appender_init(&a, &t.log, 3, shmd_bell_of(&t.log, -1));
    CHECK(shmd_newest(&t.log, &buffer, &buffer_bytes, &view) == SHMD_EMPTY);
    for (unsigned i = 0; i < 300; i++) {
        CHECK(put(&a, i * 3, &seq) == SHMD_OK);
        CHECK(shmd_newest(&t.log, &buffer, &buffer_bytes, &view) == SHMD_OK);
        CHECK(view.seq == seq && view.length == i * 3 && memcmp(view.payload, pattern, view.length) == 0);
    }
    free(buffer);
    topic_close(&t);
}

static void stale_holder_cannot_touch_a_reassigned_slot(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader old, new;
    struct shmd_view view;
    uint64_t seq;
    topic_open(&t, 4096, SHMD_FLAG_WAIT, 4);
    shmd_appender_init(&a, &t.log, 3, shmd_bell_of(&t.log, -1));
    reader_open(&old, &t, 0, 1, true);
    shmd_seek_start(&old);
    CHECK(shmd_join(&old) == SHMD_OK);
    shmd_slot_release(&t.log, 0, 1);
    reader_open(&new, &t, 0, 2, true);
    shmd_seek_start(&new);
    CHECK(shmd_join(&new) == SHMD_OK);
    CHECK(put(&a, 10, &seq) == SHMD_OK);
    uint64_t word = load_relaxed(&t.log.slots[0].word);
    CHECK(shmd_read_begin(&old, 100) == SHMD_OK && shmd_read_next(&old, &view) == SHMD_OK);
    shmd_read_end(&old);
    CHECK(load_relaxed(&t.log.slots[0].word) == word && !old.tethered);
    shmd_leave(&old);
    CHECK(load_relaxed(&t.log.slots[0].word) == word);
    struct shmd_reader late;
    CHECK(shmd_reader_init(&late, &t.log, 0, 1, true, shmd_bell_of(&t.log, -1)) == -ESTALE);
    shmd_reader_free(&old);
    shmd_reader_free(&new);
    topic_close(&t);
}

static void untethered_reader_keeps_its_slot_and_holds_nobody(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader r;
    struct shmd_view view;
    uint64_t seq;
    uint32_t slot = 99, incarnation = 99;
    topic_open(&t, 4096, SHMD_FLAG_WAIT, 4);
    shmd_appender_init(&a, &t.log, 3, shmd_bell_of(&t.log, -1));
    CHECK(shmd_slowest_slot(&t.log, &slot, &incarnation) == SHMD_EMPTY);
    reader_open(&r, &t, 2, 7, true);
    shmd_seek_start(&r);
    CHECK(shmd_join(&r) == SHMD_OK);
    while (put(&a, 100, &seq) == SHMD_OK) {}
    CHECK(shmd_slowest_slot(&t.log, &slot, &incarnation) == SHMD_OK && slot == 2 && incarnation == 7);
    CHECK(!shmd_slot_untether(&t.log, 2, 6) && put(&a, 100, &seq) == SHMD_FULL);
    CHECK(shmd_slot_untether(&t.log, 2, 7) && !shmd_slot_untether(&t.log, 2, 7));
    CHECK(put(&a, 100, &seq) == SHMD_OK && shmd_slowest_slot(&t.log, &slot, &incarnation) == SHMD_EMPTY);
    CHECK(r.tethered && shmd_read_begin(&r, 300) == SHMD_OK && shmd_read_next(&r, &view) == SHMD_OK && view.lost > 0);
    shmd_read_end(&r);
    CHECK(!r.tethered && shmd_word_incarnation(load_relaxed(&t.log.slots[2].word)) == 7);
    CHECK(shmd_join(&r) == SHMD_OK && r.tethered); /* it may ask again */
    while (put(&a, 100, &seq) == SHMD_OK) {}
    CHECK(shmd_slowest_slot(&t.log, &slot, &incarnation) == SHMD_OK);
    shmd_slot_untether(&t.log, 2, 7);
    shmd_leave(&r);
    CHECK((load_relaxed(&t.log.slots[2].word) & SHMD_WORD_LIVE) == 0);
    shmd_reader_free(&r);
    topic_close(&t);
}

/* A publisher died after it claimed room and before it moved head: a tether of that moment still gets every record. */
static void tether_beside_a_dead_claim_loses_nothing(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader r, late;
    struct shmd_view view;
    uint64_t seq, count = 0;
    topic_open(&t, 4096, SHMD_FLAG_WAIT, 4);
    shmd_appender_init(&a, &t.log, 3, shmd_bell_of(&t.log, -1));
    while (put(&a, 100, &seq) == SHMD_OK && load_relaxed(&t.log.header->head) == 0)
        count++;
    reader_open(&r, &t, 0, 1, true);
    CHECK(shmd_seek_all(&r) == SHMD_OK && shmd_join(&r) == SHMD_OK);
    uint64_t first = r.next_seq, tail = load_relaxed(&t.log.header->tail);
    store_relaxed(&t.log.header->claim, r.position + 2 * shmd_record_bytes(100)); /* two records on: the dead one's mark */
    CHECK(shmd_read_begin(&r, 144) == SHMD_OK && shmd_read_next(&r, &view) == SHMD_OK && view.seq == first);
    while (shmd_read_next(&r, &view) == SHMD_OK) {}
    shmd_read_end(&r);
    reader_open(&late, &t, 1, 1, true); /* who joins beside the claim starts behind it, and does not try for ever */
    CHECK(shmd_seek_all(&late) == SHMD_OK && shmd_join(&late) == SHMD_OK);
    CHECK(late.position == load_relaxed(&t.log.header->claim));
    store_relaxed(&t.log.header->claim, tail + 8); /* no publisher claims what was never written */
    CHECK(shmd_seek_all(&late) == SHMD_OK && shmd_join(&late) == -EUCLEAN);
    shmd_reader_free(&r);
    shmd_reader_free(&late);
    topic_close(&t);
}

static void join_rings_for_the_room_that_it_makes(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader r;
    uint64_t seq;
    topic_open(&t, 4096, SHMD_FLAG_WAIT, 4);
    shmd_appender_init(&a, &t.log, 3, shmd_bell_of(&t.log, -1));
    CHECK(shmd_slot_grant(&t.log, 0, 1, true, true) == 0); /* kept at position 0 for a subscriber to come */
    while (put(&a, 100, &seq) == SHMD_OK) {}
    CHECK(shmd_appender_arm(&a) == SHMD_OK);
    CHECK(shmd_reader_init(&r, &t.log, 0, 1, true, shmd_bell_of(&t.log, -1)) == SHMD_OK);
    CHECK(shmd_seek_new(&r) == SHMD_OK && shmd_join(&r) == SHMD_OK);
    CHECK(load_relaxed(&t.log.ctl->space_rung) == load_relaxed(&t.log.header->space_armed)); /* it rang */
    CHECK(put(&a, 100, &seq) == SHMD_OK);
    shmd_reader_free(&r);
    topic_close(&t);
}

static void subscriber_counts_from_its_join_to_its_leave_or_its_burial(void) {
    struct topic t;
    struct shmd_reader r;
    uint32_t slot = 0, incarnation = 99;
    topic_open(&t, 4096, SHMD_FLAG_WAIT, 4);
    CHECK(shmd_next_live(&t.log, &slot, &incarnation) == SHMD_EMPTY && incarnation == 99);
    reader_open(&r, &t, 2, 7, true);
    slot = 0;
    CHECK(shmd_next_live(&t.log, &slot, &incarnation) == SHMD_EMPTY); /* granted, but it has not joined */
    CHECK(shmd_seek_new(&r) == SHMD_OK && shmd_join(&r) == SHMD_OK);
    slot = 0;
    CHECK(shmd_next_live(&t.log, &slot, &incarnation) == SHMD_OK && slot == 2 && incarnation == 7);
    CHECK(shmd_slot_untether(&t.log, 2, 7));
    slot = 2;
    CHECK(shmd_next_live(&t.log, &slot, &incarnation) == SHMD_OK); /* it lost its tether, no more */
    slot = 3;
    CHECK(shmd_next_live(&t.log, &slot, &incarnation) == SHMD_EMPTY);
    slot = UINT32_MAX;
    CHECK(shmd_next_live(&t.log, &slot, &incarnation) == SHMD_EMPTY);
    CHECK(!shmd_slot_bury(&t.log, 2, 6) && shmd_slot_bury(&t.log, 2, 7) && !shmd_slot_bury(&t.log, 2, 7));
    CHECK(!shmd_slot_bury(&t.log, 4, 7));
    slot = 0;
    CHECK(shmd_next_live(&t.log, &slot, &incarnation) == SHMD_EMPTY);
    CHECK(shmd_word_incarnation(load_relaxed(&t.log.slots[2].word)) == 7); /* the slot is not free yet */
    CHECK(shmd_slot_grant(&t.log, 3, 1, true, false) == 0);
    store_relaxed(&t.log.ctl->slot_high, UINT32_MAX); /* forged: no look beyond the slots */
    slot = 0;
    CHECK(shmd_next_live(&t.log, &slot, &incarnation) == SHMD_OK && slot == 3 && incarnation == 1);
    shmd_slot_release(&t.log, 3, 1);
    slot = 0;
    CHECK(shmd_next_live(&t.log, &slot, &incarnation) == SHMD_EMPTY && slot == 4);
    shmd_leave(&r);
    shmd_reader_free(&r);
    topic_close(&t);
}

static void reservation_becomes_a_record(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader r;
    struct shmd_view view;
    uint8_t *payload;
    uint64_t seq;
    topic_open(&t, 4096, SHMD_FLAG_EXCLUSIVE | SHMD_FLAG_WAIT, 4);
    shmd_appender_init(&a, &t.log, 3, shmd_bell_of(&t.log, -1));
    reader_open(&r, &t, 0, 1, true);
    shmd_seek_start(&r);
    CHECK(shmd_join(&r) == SHMD_OK);
    for (size_t size = 0; size < 900; size += 7) {
        CHECK(shmd_reserve(&a, size, &payload) == SHMD_OK);
        memcpy(payload, pattern, size);
        CHECK(shmd_read_begin(&r, 4096) == SHMD_EMPTY);
        CHECK(shmd_commit_reserved(&a, size, &seq) == SHMD_OK);
        CHECK(shmd_read_begin(&r, 4096) == SHMD_OK && shmd_read_next(&r, &view) == SHMD_OK);
        CHECK(view.seq == seq && view.length == size && memcmp(view.payload, pattern, size) == 0);
        shmd_read_end(&r);
    }
    topic_close(&t);
    shmd_reader_free(&r);
}

static void damaged_newest_record_is_an_error_not_a_wait(void) {
    struct topic t;
    struct shmd_appender a;
    struct shmd_reader r;
    struct shmd_view view;
    uint8_t *buffer = NULL;
    size_t buffer_bytes = 0;
    uint64_t seq;
    topic_open(&t, 4096, 0, 4);
    shmd_appender_init(&a, &t.log, 3, shmd_bell_of(&t.log, -1));
    reader_open(&r, &t, 0, 1, false);
    while (load_relaxed(&t.log.header->head) == 0)
        CHECK(put(&a, 100, &seq) == SHMD_OK);
    uint64_t trailer = (load_relaxed(&t.log.header->tail) - 4) & t.log.mask;
    memset(t.log.ring + trailer, 0xee, 4);
    CHECK(shmd_seek_new(&r) == -EUCLEAN && shmd_seek_last(&r) == -EUCLEAN);
    CHECK(shmd_newest(&t.log, &buffer, &buffer_bytes, &view) == -EUCLEAN);
    CHECK(put(&a, 100, &seq) == -EUCLEAN);
    free(buffer);
    topic_close(&t);
}

/* Padding ends with the ring and is shorter than the longest record: anything longer is no publisher's. */
static void padding_longer_than_any_record_is_damage(void) {
    for (uint64_t length = 1024 - 8; length <= 4096; length += 8) {
        struct topic t;
        struct shmd_reader r;
        struct shmd_view view;
        uint64_t position = 4096 - length, stored;
        topic_open(&t, 4096, SHMD_FLAG_WAIT, 4);
        reader_open(&r, &t, 0, 1, true);
        store_relaxed(&t.log.header->head, position);
        store_relaxed(&t.log.header->tail, 4096);
        store_relaxed((shmd_a64 *)(void *)(t.log.ring + position), (uint64_t)SHMD_KIND_PADDING << 32 | length);
        bool good = length < 4096 / 4;
        CHECK(shmd_stored_bytes(&t.log, position, 4096, &stored) == (good ? length : 0));
        CHECK(shmd_seek_all(&r) == (good ? SHMD_OK : -EUCLEAN));
        shmd_seek_position(&r, position, 1);
        CHECK(shmd_read_begin(&r, 65536) == SHMD_OK);
        CHECK(shmd_read_next(&r, &view) == (good ? SHMD_EMPTY : -EUCLEAN));
        shmd_read_end(&r);
        shmd_reader_free(&r);
        topic_close(&t);
    }
}

static void another_identity_is_refused(void) {
    struct topic t;
    struct shmd_log log;
    topic_open(&t, 4096, 0, 4);
    struct shmd_identity other = t.identity;
    other.topic_id[3] ^= 1;
    CHECK(shmd_log_open(&log, t.log_memory, t.log_bytes, t.ctl_memory, t.ctl_bytes, &other) == -EUCLEAN);
    other = t.identity;
    other.capacity = 8192;
    CHECK(shmd_log_open(&log, t.log_memory, t.log_bytes, t.ctl_memory, t.ctl_bytes, &other) == -EUCLEAN);
    other = t.identity;
    other.flags = SHMD_FLAG_WAIT;
    CHECK(shmd_log_open(&log, t.log_memory, t.log_bytes, NULL, 0, &other) == -EUCLEAN);
    CHECK(shmd_log_open(&log, t.log_memory, t.log_bytes - 1, NULL, 0, &t.identity) == -EUCLEAN);
    CHECK(shmd_log_open(&log, t.log_memory, t.log_bytes, t.ctl_memory, t.ctl_bytes - 1, &t.identity) == -EUCLEAN);
    CHECK(shmd_log_open(&log, t.log_memory, t.log_bytes, NULL, 0, &t.identity) == 0);
    store_relaxed(&t.log.header->magic, 0);
    CHECK(shmd_log_open(&log, t.log_memory, t.log_bytes, NULL, 0, &t.identity) == -EUCLEAN);
    topic_close(&t);
}

int main(void) {
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (uint8_t)(i * 31 + i / 251);
    every_size_survives_every_offset();
    full_topic_refuses_until_the_slowest_reads();
    lapped_reader_counts_exactly_what_it_lost();
    batch_is_all_or_nothing();
    seeks_find_their_record();
    newest_is_the_last_committed();
    stale_holder_cannot_touch_a_reassigned_slot();
    untethered_reader_keeps_its_slot_and_holds_nobody();
    tether_beside_a_dead_claim_loses_nothing();
    join_rings_for_the_room_that_it_makes();
    subscriber_counts_from_its_join_to_its_leave_or_its_burial();
    reservation_becomes_a_record();
    damaged_newest_record_is_an_error_not_a_wait();
    padding_longer_than_any_record_is_damage();
    another_identity_is_refused();
    puts("test_log: ok");
    return 0;
}
