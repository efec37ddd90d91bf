/*
 * Publish to a topic, for subscribers in any language.
 *
 *     publish TOPIC [COUNT [wait]]
 *
 * Publishes {"n": 1, "from": "C"}, {"n": 2, ...} and so on: COUNT records, or until it is interrupted. With `wait` the
 * topic, if it is made now, has its publishers wait for slow subscribers; otherwise it discards its oldest records.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <shmd/client.h>
#include <shmd/wire.h>

static volatile sig_atomic_t stopped;

static void stop(int number) {
    (void)number;
    stopped = 1; /* and what waits is interrupted: it returns -EINTR */
}

static void catch_signals(void) {
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static int publish_all(struct shmd_publisher *publisher, unsigned long count, uint64_t *seqp) {
    uint8_t bytes[64];
    for (unsigned long n = 1; (count == 0 || n <= count) && !stopped; n++) {
        struct shmd_packer packer = {bytes, sizeof bytes, 0};
        shmd_pack_map(&packer, 2);
        shmd_pack_text(&packer, "n");
        shmd_pack_uint(&packer, n);
        shmd_pack_text(&packer, "from");
        shmd_pack_text(&packer, "C");
        int result;
        do /* a signal that comes right before it waits has nothing to interrupt yet: so look at `stopped` now and then */
            result = shmd_publish(publisher, bytes, packer.size, 1000, seqp);
        while ((result == SHMD_FULL || result == SHMD_BUSY) && !stopped);
        if (result != SHMD_OK)
            return stopped ? SHMD_OK : result;
    }
    return SHMD_OK;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: publish TOPIC [COUNT [wait]]\n");
        return 2;
    }
    unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    struct shmd_topic_options options = {0};
    if (argc > 3 && strcmp(argv[3], "wait") == 0)
        options.when_full = SHMD_WAIT;

    struct shmd_client *client;
    struct shmd_publisher *publisher;
    uint64_t seq = 0;
    catch_signals();
    int result = shmd_connect(NULL, "publish.c", &client);
    if (result == SHMD_OK)
        result = shmd_open_publisher(client, argv[1], &options, &publisher);
    if (result == SHMD_OK)
        result = publish_all(publisher, count, &seq);
    if (result != SHMD_OK && result != -EINTR)
        fprintf(stderr, "publish: %s\n", shmd_error_text(client));
    printf("last sequence number: %llu\n", (unsigned long long)seq);
    shmd_disconnect(client); /* closes the publisher too */
    return result == SHMD_OK || result == -EINTR ? 0 : 1;
}
