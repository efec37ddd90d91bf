/*
 * Publishers and readers as threads, with real doorbells: one total order for all, nothing lost on a `wait` topic,
 * received + lost = sent on a `discard-old` topic, nobody sleeps beside an unread record. Made for ThreadSanitizer, which
 * judges the orders of commit and cursor by the plain memcpy of tethered readers.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"

#define PUBLISHERS 3
#define READERS 3
#define WATCHDOG_MS 60000

static struct topic topic;
static int record_bell, space_bell;
static unsigned records_each;
static shmd_a32 reading;

struct message {
    uint64_t publisher, number, filler[4];
};

static int bell_watch(int bell) {
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    CHECK(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, bell, &event) == 0);
    return set;
}

static void bell_sleep(int set) {
    struct epoll_event event;
    CHECK(epoll_wait(set, &event, 1, WATCHDOG_MS) == 1); /* a timeout here is a lost wake-up */
}

static void *publish(void *arg) {
    struct shmd_log log = topic.log;
    struct shmd_appender a;
    uint64_t id = (uint64_t)(uintptr_t)arg, seq;
    int set = bell_watch(space_bell);
    shmd_appender_init(&a, &log, (uint32_t)id, record_bell);
    for (uint64_t n = 0; n < records_each;) {
        struct message m = {id, n, {n, n ^ id, n * 3, ~n}};
        struct shmd_bytes payload = {(const uint8_t *)&m, sizeof m - (n % 4) * 8};
        int result = shmd_append(&a, &payload, 1, &seq);
        CHECK(result >= 0);
        if (result == SHMD_OK)
            n++;
        else if (result == SHMD_FULL && shmd_appender_arm(&a) == SHMD_OK)
            bell_sleep(set);
        else
            sched_yield();
    }
    close(set);
    return NULL;
}

static void *subscribe(void *arg) {
    struct shmd_log log = topic.log;
    struct shmd_reader r;
    struct shmd_view view;
    uint64_t next[PUBLISHERS] = {0}, received = 0, lost = 0, total = (uint64_t)records_each * PUBLISHERS;
    int set = bell_watch(record_bell);
    CHECK(shmd_reader_init(&r, &log, (uint32_t)(uintptr_t)arg, 1, true, space_bell) == 0);
    shmd_seek_start(&r);
    CHECK(shmd_join(&r) == SHMD_OK);
    (void)add_seq(&reading, 1); /* SYNC: pairs with main's wait before it starts the publishers */
    while (received + lost < total) {
        int result = shmd_read_begin(&r, 1024);
        CHECK(result >= 0);
        if (result == SHMD_EMPTY && shmd_reader_arm(&r) == SHMD_OK)
            bell_sleep(set);
        if (result != SHMD_OK)
            continue;
        while ((result = shmd_read_next(&r, &view)) == SHMD_OK) {
            struct message m;
            CHECK(view.length >= 24 && view.length <= sizeof m);
            memcpy(&m, view.payload, view.length);
            received++;
            lost += view.lost;
            CHECK(view.seq == received + lost && m.publisher == view.publisher && m.publisher < PUBLISHERS);
            CHECK(m.number >= next[m.publisher] && m.filler[0] == m.number);
            CHECK(!r.tethered || m.number == next[m.publisher]);
            next[m.publisher] = m.number + 1;
        }
        CHECK(result == SHMD_EMPTY);
        shmd_read_end(&r);
    }
    CHECK(!(topic.identity.flags & SHMD_FLAG_WAIT) || (lost == 0 && r.tethered));
    shmd_leave(&r);
    shmd_reader_free(&r);
    close(set);
    return NULL;
}

static void run(uint32_t flags) {
    pthread_t readers[READERS], publishers[PUBLISHERS];
    topic_open(&topic, 8192, flags, READERS);
    record_bell = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    space_bell = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(record_bell >= 0 && space_bell >= 0);
    store_relaxed(&reading, 0);
    for (uint32_t i = 0; i < READERS; i++)
        CHECK(shmd_slot_grant(&topic.log, i, 1, false, false) == 0);
    for (uintptr_t i = 0; i < READERS; i++)
        CHECK(pthread_create(&readers[i], NULL, subscribe, (void *)i) == 0);
    while (load_seq(&reading) < READERS) /* SYNC: pairs with the add in subscribe */
        sched_yield();
    for (uintptr_t i = 0; i < PUBLISHERS; i++)
        CHECK(pthread_create(&publishers[i], NULL, publish, (void *)i) == 0);
    for (int i = 0; i < PUBLISHERS; i++)
        pthread_join(publishers[i], NULL);
    for (int i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    close(record_bell);
    close(space_bell);
    topic_close(&topic);
}

int main(int argc, char **argv) {
    records_each = argc > 1 ? (unsigned)atoi(argv[1]) : 20000;
    run(SHMD_FLAG_WAIT);
    run(0);
    puts("stress: ok");
    return 0;
}
