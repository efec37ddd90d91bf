/*
 * Subscribe to a topic that programs in any language publish to, and print its records as they come.
 *
 *     subscribe TOPIC [new|last|all]
 *
 * A line for each: its sequence number and its payload. It waits for a topic that does not exist yet, and ends when the
 * topic is removed, or when it is interrupted.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <shmd/client.h>
#include <shmd/wire.h>

/* A signal that comes right before shmd_next() waits has nothing to interrupt yet: so it looks at `stopped` now and then. */
#define PATIENCE_MS 1000
#define DEPTH_MAX 32 /* of containers in containers, which a publisher may nest as deep as it likes */

static volatile sig_atomic_t stopped;

static void stop(int number) {
    (void)number;
    stopped = 1; /* and shmd_next() is interrupted: it returns -EINTR */
}

/* Print one msgpack value, much as JSON has it. */
static int print_value(struct shmd_unpacker *unpacker, int depth) {
    struct shmd_item item;
    if (depth > DEPTH_MAX || shmd_unpack(unpacker, &item) != 0)
        return -EBADMSG;
    switch (item.kind) {
    case SHMD_NIL: printf("null"); break;
    case SHMD_BOOL: printf(item.number ? "true" : "false"); break;
    case SHMD_UINT: printf("%" PRIu64, item.number); break;
    case SHMD_INT: printf("%" PRId64, item.integer); break;
    case SHMD_FLOAT: printf("%g", item.real); break;
    case SHMD_STR: printf("\"%.*s\"", (int)item.size, (const char *)item.bytes); break;
    case SHMD_BIN:
    case SHMD_EXT: printf("<%" PRIu32 " bytes>", item.size); break;
    case SHMD_ARRAY:
    case SHMD_MAP:
        putchar(item.kind == SHMD_MAP ? '{' : '[');
        for (uint32_t i = 0; i < item.size; i++) {
            if (i > 0)
                printf(", ");
            if (item.kind == SHMD_MAP) {
                if (print_value(unpacker, depth + 1) != 0)
                    return -EBADMSG;
                printf(": ");
            }
            if (print_value(unpacker, depth + 1) != 0)
                return -EBADMSG;
        }
        putchar(item.kind == SHMD_MAP ? '}' : ']');
    }
    return 0;
}

static void print_record(const struct shmd_view *record) {
    struct shmd_unpacker unpacker = {record->payload, record->payload + record->length};
    if (record->lost > 0)
        printf("(lost %" PRIu64 ")\n", record->lost);
    printf("%" PRIu64 " ", record->seq);
    if (print_value(&unpacker, 0) != 0)
        printf("<not msgpack>");
    putchar('\n');
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: subscribe TOPIC [new|last|all]\n");
        return 2;
    }
    struct shmd_subscriber_options options = {.start = SHMD_START_NEW, .topic_wait_ms = -1};
    if (argc > 2 && strcmp(argv[2], "all") == 0)
        options.start = SHMD_START_ALL;
    if (argc > 2 && strcmp(argv[2], "last") == 0)
        options.start = SHMD_START_LAST;

    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    struct shmd_client *client;
    struct shmd_subscriber *subscriber;
    struct shmd_view record;
    int result = shmd_connect(NULL, "subscribe.c", &client);
    if (result == SHMD_OK)
        result = shmd_open_subscriber(client, argv[1], &options, &subscriber);
    while (result == SHMD_OK && !stopped) {
        result = shmd_next(subscriber, PATIENCE_MS, &record);
        if (result == SHMD_OK)
            print_record(&record);
        else if (result == SHMD_EMPTY)
            result = SHMD_OK;
    }
    if (result < 0 && result != -EINTR)
        fprintf(stderr, "subscribe: %s\n", shmd_error_text(client));
    shmd_disconnect(client); /* closes the subscriber too */
    return result == SHMD_OK || result == -EINTR || result == -EIDRM ? 0 : 1;
}
