/*
 * Does with client.h what it is told on its standard input, a line for each call, and answers each with a line: the
 * result, and what came of it. A test in Python thus drives a C program step by step. One publisher, one subscriber and one
 * raw segment.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <shmd/client.h>

static struct shmd_client *client;
static struct shmd_publisher *publisher;
static struct shmd_subscriber *subscriber;
static struct shmd_segment *segment;

static void answer(int result) {
    printf("%d %s\n", result, result < 0 && client != NULL ? shmd_error_text(client) : "");
}

static bool has(char **words, const char *word) {
    for (; *words != NULL; words++)
        if (strcmp(*words, word) == 0)
            return true;
    return false;
}

/* The number behind `word`, or `otherwise`. */
static long number(char **words, const char *word, long otherwise) {
    for (; *words != NULL; words++)
        if (strcmp(*words, word) == 0 && words[1] != NULL)
            return strtol(words[1], NULL, 0);
    return otherwise;
}

static int count_descriptors(void) {
    int count = -3; /* itself, . and .. */
    DIR *directory = opendir("/proc/self/fd");
    if (directory == NULL)
        return -1;
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

static void open_publisher(char **words) {
    struct shmd_topic_options options = {
        .size_bytes = (uint64_t)number(words, "size", 0),
        .when_full = has(words, "wait") ? SHMD_WAIT : SHMD_WHEN_FULL_ANY,
        .exclusive = has(words, "exclusive") ? SHMD_YES : SHMD_EITHER,
        .attached = has(words, "attached") ? SHMD_YES : SHMD_EITHER,
        .fifo = has(words, "fifo") ? SHMD_YES : SHMD_EITHER,
        .mode = (unsigned)number(words, "mode", 0),
    };
    answer(shmd_open_publisher(client, words[1], &options, &publisher));
}

static void open_subscriber(char **words) {
    struct shmd_subscriber_options options = {
        .start = has(words, "all")    ? SHMD_START_ALL
                 : has(words, "last") ? SHMD_START_LAST
                 : has(words, "seq")  ? SHMD_START_SEQ
                                      : SHMD_START_NEW,
        .from = (uint64_t)number(words, "seq", 0),
        .untethered = has(words, "untethered"),
        .topic_wait_ms = (int)number(words, "topic-wait", 0),
    };
    answer(shmd_open_subscriber(client, words[1], &options, &subscriber));
}

static void open_segment(char **words) {
    struct shmd_segment_options options = {
        .size_bytes = (uint64_t)number(words, "size", 0),
        .mode = (unsigned)number(words, "mode", 0),
        .key = (int)number(words, "key", 0),
        .adopt = has(words, "adopt"),
        .create = has(words, "exclusive") ? SHMD_CREATE_EXCLUSIVE : has(words, "open-only") ? SHMD_OPEN_ONLY : SHMD_CREATE,
        .readonly = has(words, "readonly"),
        .file = has(words, "file") ? SHMD_YES : SHMD_EITHER,
        .attached = has(words, "attached") ? SHMD_YES : SHMD_EITHER,
    };
    answer(shmd_open_segment(client, words[1], &options, &segment));
}

static bool act_on_segment(char **words) {
    const char *verb = words[0];
    if (strcmp(verb, "segment") == 0)
        open_segment(words);
    else if (strcmp(verb, "segment-about") == 0)
        printf("%d %" PRIu32 " %d %zu\n", shmd_segment_about(segment)->id, shmd_segment_about(segment)->key,
               shmd_segment_about(segment)->sem_id, shmd_segment_size(segment));
    else if (strcmp(verb, "write") == 0)
        memcpy(shmd_segment_memory(segment), words[1], strlen(words[1]) + 1), printf("0\n");
    else if (strcmp(verb, "read") == 0)
        printf("0 %.100s\n", (const char *)shmd_segment_memory(segment));
    else if (strcmp(verb, "notify") == 0)
        answer(shmd_segment_notify(segment));
    else if (strcmp(verb, "wait") == 0)
        answer(shmd_segment_wait(segment, (int)number(words, "timeout", 0)));
    else if (strcmp(verb, "lock") == 0)
        answer(shmd_segment_lock(segment, (int)number(words, "timeout", 0)));
    else if (strcmp(verb, "unlock") == 0)
        answer(shmd_segment_unlock(segment));
    else if (strcmp(verb, "close-segment") == 0)
        shmd_close_segment(segment), segment = NULL, printf("0\n");
    else if (strcmp(verb, "remove-segment") == 0)
        answer(shmd_remove_segment(client, words[1]));
    else
        return false;
    return true;
}

static void publish(char **words) {
    uint64_t seq = 0;
    int result = shmd_publish(publisher, words[1], strlen(words[1]), (int)number(words, "timeout", 0), &seq);
    if (result == SHMD_OK)
        printf("0 %" PRIu64 "\n", seq);
    else
        answer(result);
}

static void publish_pair(char **words) {
    uint64_t seq = 0;
    struct shmd_bytes pair[2];
    for (int i = 0; i < 2; i++)
        pair[i] = (struct shmd_bytes){(const uint8_t *)words[1 + i], strlen(words[1 + i])};
    int result = shmd_publish_many(publisher, pair, 2, 0, &seq);
    printf("%d %" PRIu64 "\n", result, seq);
}

static void next(char **words) {
    struct shmd_view record;
    int result = shmd_next(subscriber, (int)number(words, "timeout", 0), &record);
    if (result == SHMD_OK)
        printf("0 %" PRIu64 " lost %" PRIu64 " %.*s\n", record.seq, record.lost, (int)record.length,
               (const char *)record.payload);
    else
        answer(result);
}

/* Sleep as a program with a poll loop of its own would. */
static void poll_for_records(void) {
    int result = shmd_arm(subscriber);
    struct pollfd readable = {.fd = shmd_subscriber_fd(subscriber), .events = POLLIN};
    if (result == SHMD_OK)
        result = poll(&readable, 1, shmd_poll_timeout_ms(subscriber));
    printf("%d\n", result);
}

static bool act(char **words) {
    const char *verb = words[0];
    if (strcmp(verb, "connect") == 0)
        answer(shmd_connect(words[1], "drive", &client));
    else if (strcmp(verb, "connect-wait") == 0)
        answer(shmd_connect_wait(words[1], "drive", (int)number(words, "timeout", -1), &client));
    else if (strcmp(verb, "publisher") == 0)
        open_publisher(words);
    else if (strcmp(verb, "subscriber") == 0)
        open_subscriber(words);
    else if (strcmp(verb, "publish") == 0)
        publish(words);
    else if (strcmp(verb, "publish-pair") == 0)
        publish_pair(words);
    else if (strcmp(verb, "next") == 0)
        next(words);
    else if (strcmp(verb, "poll") == 0)
        poll_for_records();
    else if (strcmp(verb, "wait-subscribers") == 0)
        answer(shmd_wait_for_subscribers(publisher, (uint32_t)number(words, "count", 1), (int)number(words, "timeout", -1)));
    else if (strcmp(verb, "declare") == 0)
        answer(shmd_declare(client, words[1], NULL, NULL));
    else if (strcmp(verb, "remove") == 0)
        answer(shmd_remove_topic(client, words[1]));
    else if (strcmp(verb, "resume") == 0)
        answer(shmd_client_resume(client));
    else if (strcmp(verb, "reconnect") == 0)
        shmd_set_reconnect(client, has(words, "yes")), printf("0\n");
    else if (strcmp(verb, "connected") == 0)
        printf("%d\n", shmd_connected(client));
    else if (strcmp(verb, "tethered") == 0)
        printf("%d\n", shmd_tethered(subscriber));
    else if (strcmp(verb, "lost") == 0)
        printf("%" PRIu64 "\n", shmd_lost(subscriber));
    else if (strcmp(verb, "code") == 0)
        printf("%s\n", shmd_error_code(client));
    else if (strcmp(verb, "descriptors") == 0)
        printf("%d\n", count_descriptors());
    else if (strcmp(verb, "close-publisher") == 0)
        shmd_close_publisher(publisher), publisher = NULL, printf("0\n");
    else if (strcmp(verb, "close-subscriber") == 0)
        shmd_close_subscriber(subscriber), subscriber = NULL, printf("0\n");
    else if (strcmp(verb, "disconnect") == 0)
        shmd_disconnect(client), client = NULL, printf("0\n");
    else if (!act_on_segment(words))
        return false;
    fflush(stdout);
    return true;
}

int main(void) {
    char line[9000];
    while (fgets(line, sizeof line, stdin) != NULL) {
        char *words[9] = {NULL}, *rest = NULL;
        for (int i = 0; i < 8; i++)
            if ((words[i] = strtok_r(i == 0 ? line : NULL, " \n", &rest)) == NULL)
                break;
        if (words[0] == NULL || !act(words)) {
            fprintf(stderr, "drive: what is %s?\n", words[0] != NULL ? words[0] : "an empty line");
            return 2;
        }
    }
    shmd_disconnect(client);
    return 0;
}
