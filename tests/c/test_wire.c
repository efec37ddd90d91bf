/*
 * msgpack and control messages: what is packed is unpacked, what is not a message is refused, and no bytes of a peer make
 * the reader look beyond them (packets are exactly sized heap blocks, so ASan sees one byte too many), loop, or leave a
 * text without its end. test_wire ROUNDS [SEED]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <time.h>

#include "check.h"
#include "messages.h"

static uint64_t state;

static uint64_t pick(uint64_t below) {
    state ^= state << 13; /* xorshift64, G. Marsaglia, 2003 */
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

/* --- msgpack --- */

static const uint64_t numbers[] = {0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x10000, 0xffffffff, 0x100000000, UINT64_MAX};

static void numbers_come_back(void) {
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        uint8_t bytes[32];
        struct shmd_packer packer = {bytes, sizeof bytes, 0};
        struct shmd_item item;
        int64_t negative = -1 - (int64_t)(numbers[i] >> 1);
        shmd_pack_uint(&packer, numbers[i]);
        shmd_pack_int(&packer, negative);
        shmd_pack_double(&packer, (double)numbers[i] + 0.5);
        struct shmd_unpacker unpacker = {bytes, bytes + packer.size};
        CHECK(shmd_unpack(&unpacker, &item) == 0 && item.kind == SHMD_UINT && item.number == numbers[i]);
        CHECK(shmd_unpack(&unpacker, &item) == 0 && item.kind == SHMD_INT && item.integer == negative);
        CHECK(shmd_unpack(&unpacker, &item) == 0 && item.kind == SHMD_FLOAT && item.real == (double)numbers[i] + 0.5);
        CHECK(unpacker.at == unpacker.end && shmd_unpack(&unpacker, &item) == -EBADMSG);
    }
}

static void texts_come_back(void) {
    static char text[70000];
    static uint8_t bytes[sizeof text + 16];
    memset(text, 'x', sizeof text);
    for (uint32_t size = 0; size < sizeof text; size = size * 2 + 1) {
        struct shmd_packer packer = {bytes, sizeof bytes, 0};
        struct shmd_item item;
        if (size % 2)
            shmd_pack_str(&packer, text, size);
        else
            shmd_pack_bin(&packer, (const uint8_t *)text, size);
        struct shmd_unpacker unpacker = {bytes, bytes + packer.size};
        CHECK(shmd_packed(&packer) && shmd_unpack(&unpacker, &item) == 0);
        CHECK(item.kind == (size % 2 ? SHMD_STR : SHMD_BIN) && item.size == size && unpacker.at == unpacker.end);
        CHECK(memcmp(item.bytes, text, size) == 0);
    }
}

static void packer_says_how_much_it_would_have_taken(void) {
    uint8_t bytes[5] = {0};
    struct shmd_packer packer = {bytes, 4, 0};
    shmd_pack_text(&packer, "abc");
    CHECK(shmd_packed(&packer) && packer.size == 4);
    shmd_pack_text(&packer, "d");
    CHECK(!shmd_packed(&packer) && packer.size == 6 && bytes[4] == 0);
}

static void skipping_takes_no_stack(void) {
    static uint8_t deep[SHMD_MESSAGE_BYTES_MAX];
    memset(deep, 0x91, sizeof deep); /* an array of one array of one array ... */
    deep[sizeof deep - 1] = 0xc0;
    struct shmd_unpacker unpacker = {deep, deep + sizeof deep};
    CHECK(shmd_unpack_skip(&unpacker) == 0 && unpacker.at == unpacker.end);
    deep[sizeof deep - 1] = 0x91; /* and the last one's value is missing */
    unpacker = (struct shmd_unpacker){deep, deep + sizeof deep};
    CHECK(shmd_unpack_skip(&unpacker) == -EBADMSG);
}

static void counts_beyond_the_bytes_are_refused(void) {
    static const uint8_t forged[][6] = {
        {0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0}, {0xdf, 0x7f, 0xff, 0xff, 0xff, 0xc0}, {0xdb, 0x00, 0x00, 0x00, 0x02, 'x'},
        {0xc6, 0xff, 0xff, 0xff, 0xff, 0x00}, {0xdc, 0x00, 0x04, 0xc0, 0xc0, 0xc0}, {0x83, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0},
        {0xc9, 0x00, 0x00, 0x00, 0x01, 0x05}, {0xcf, 0, 0, 0, 0, 0},                {0xc1, 0, 0, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof forged / sizeof *forged; i++) {
        struct shmd_unpacker unpacker = {forged[i], forged[i] + sizeof forged[i]};
        struct shmd_item item;
        CHECK(shmd_unpack(&unpacker, &item) == -EBADMSG);
    }
}

/* --- messages --- */

/* A grant as the daemon sends it, with one field of the caller's instead of its own. */
static size_t grant(uint8_t *bytes, size_t capacity, const char *instead, uint64_t value) {
    static const char *const fields[] = {"log_id", "log_key", "ctl_id", "ctl_key", "size_bytes", "mode", "uid", "gid"};
    struct shmd_request r;
    shmd_request_begin(&r, "publisher", 9, 2);
    r.packer = (struct shmd_packer){bytes, capacity, 0};
    shmd_pack_map(&r.packer, 4);
    shmd_request_text(&r, "type", "publisher");
    shmd_request_uint(&r, "id", 9);
    shmd_request_uint(&r, "publisher", 3);
    shmd_pack_text(&r.packer, "topic");
    shmd_pack_map(&r.packer, 14);
    shmd_request_text(&r, "name", "prices");
    shmd_pack_text(&r.packer, "topic_id");
    shmd_pack_bin(&r.packer, (const uint8_t *)"0123456789abcdef", 16);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        shmd_request_uint(&r, fields[i], instead != NULL && strcmp(instead, fields[i]) == 0 ? value : i);
    shmd_request_text(&r, "when_full", "wait");
    shmd_request_bool(&r, "exclusive", false);
    shmd_request_text(&r, "a_later_version", "has more to say");
    shmd_pack_text(&r.packer, "idle_ttl_s");
    shmd_pack_nil(&r.packer);
    CHECK(shmd_packed(&r.packer));
    return r.packer.size;
}

static void grant_is_understood(void) {
    uint8_t bytes[1024];
    struct shmd_reply reply;
    CHECK(shmd_reply_decode(bytes, grant(bytes, sizeof bytes, NULL, 0), &reply) == 0);
    CHECK(reply.type == SHMD_REPLY_PUBLISHER && reply.id == 9 && reply.publisher == 3 && reply.fds == 2);
    CHECK(strcmp(reply.topic.name, "prices") == 0 && memcmp(reply.topic.topic_id, "0123456789abcdef", 16) == 0);
    CHECK(reply.topic.log_id == 0 && reply.topic.ctl_key == 3 && reply.topic.size_bytes == 4 && reply.topic.gid == 7);
    CHECK(reply.topic.waits && !reply.topic.exclusive && !reply.topic.attached && !reply.topic.hostile);
}

static void numbers_out_of_bounds_are_refused(void) {
    uint8_t bytes[1024];
    struct shmd_reply reply;
    CHECK(shmd_reply_decode(bytes, grant(bytes, sizeof bytes, "log_id", 0x100000000), &reply) == -EBADMSG);
    CHECK(shmd_reply_decode(bytes, grant(bytes, sizeof bytes, "mode", 01000), &reply) == -EBADMSG);
    CHECK(shmd_reply_decode(bytes, grant(bytes, sizeof bytes, "size_bytes", UINT64_MAX), &reply) == -EBADMSG);
}

static void every_cut_is_refused(void) {
    uint8_t bytes[1024];
    struct shmd_reply reply;
    size_t size = grant(bytes, sizeof bytes, NULL, 0);
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *exact = malloc(cut);
        CHECK(exact != NULL || cut == 0);
        memcpy(exact, bytes, cut);
        CHECK(shmd_reply_decode(exact, cut, &reply) == -EBADMSG);
        free(exact);
    }
    CHECK(shmd_reply_decode(bytes, size + 1, &reply) == -EBADMSG); /* and so is a byte too many */
}

static void refusals_are_cut_to_size_and_cleaned(void) {
    static char long_text[2000];
    uint8_t bytes[4096];
    struct shmd_reply reply;
    struct shmd_request r;
    memset(long_text, '\n', sizeof long_text - 1);
    shmd_request_begin(&r, "refused", 1, 3);
    r.packer = (struct shmd_packer){bytes, sizeof bytes, 0};
    shmd_pack_map(&r.packer, 5);
    shmd_request_text(&r, "hint", long_text);
    shmd_request_text(&r, "message", "no");
    shmd_request_text(&r, "code", "topic-busy");
    shmd_request_uint(&r, "id", 1);
    shmd_request_text(&r, "type", "refused"); /* last: the order of fields means nothing */
    CHECK(shmd_reply_decode(bytes, r.packer.size, &reply) == 0 && reply.type == SHMD_REPLY_REFUSED);
    CHECK(strlen(reply.hint) == sizeof reply.hint - 1 && reply.hint[0] == ' ' && strcmp(reply.message, "no") == 0);
    CHECK(shmd_code_errno(reply.code) == EBUSY && shmd_code_errno("from-the-future") == EREMOTEIO);
}

static void names_are_refused_if(const char *name, uint32_t size, int expected) {
    uint8_t bytes[1024];
    struct shmd_reply reply;
    struct shmd_request r;
    shmd_request_begin(&r, "topic-added", 1, 2);
    r.packer = (struct shmd_packer){bytes, sizeof bytes, 0};
    shmd_pack_map(&r.packer, 3);
    shmd_request_text(&r, "type", "topic-added");
    shmd_request_uint(&r, "watch", 5);
    shmd_pack_text(&r.packer, "topic");
    shmd_pack_str(&r.packer, name, size);
    CHECK(shmd_reply_decode(bytes, r.packer.size, &reply) == expected);
}

static void unknown_messages_are_passed_over(void) {
    static const uint8_t event[] = {0x82, 0xa4, 't', 'y', 'p', 'e', 0xa3, 'n', 'e', 'w', 0xa1, 'x', 0x92, 0xc0, 0x80};
    struct shmd_reply reply;
    CHECK(shmd_reply_decode(event, sizeof event, &reply) == 0 && reply.type == SHMD_REPLY_OTHER);
}

/* --- hostile bytes --- */

static void check_ends(const struct shmd_reply *reply) {
    CHECK(memchr(reply->code, 0, sizeof reply->code) && memchr(reply->message, 0, sizeof reply->message));
    CHECK(memchr(reply->hint, 0, sizeof reply->hint) && memchr(reply->topic_name, 0, sizeof reply->topic_name));
    CHECK(memchr(reply->topic.name, 0, sizeof reply->topic.name) && reply->slot <= 1023);
}

static void fuzz_one(void) {
    uint8_t bytes[1024];
    struct shmd_reply reply;
    size_t size = pick(4) ? grant(bytes, sizeof bytes, NULL, 0) : pick(64);
    if (size < 64)
        for (size_t i = 0; i < size; i++)
            bytes[i] = (uint8_t)pick(256);
    for (uint64_t changes = pick(6); changes > 0 && size > 0; changes--)
        bytes[pick(size)] = (uint8_t)(pick(2) ? pick(256) : 0xc0 + pick(32)); /* aim: what carries a length */
    if (pick(4) == 0)
        size = pick(size + 1);
    uint8_t *exact = malloc(size);
    CHECK(exact != NULL || size == 0);
    if (size > 0)
        memcpy(exact, bytes, size);
    int result = shmd_reply_decode(exact, size, &reply);
    CHECK(result == 0 || result == -EBADMSG);
    check_ends(&reply);
    struct shmd_unpacker unpacker = {exact, exact + size};
    if (shmd_unpack_skip(&unpacker) == 0)
        CHECK(unpacker.at > exact && unpacker.at <= exact + size);
    free(exact);
}

int main(int argc, char **argv) {
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL) | 1u;
    printf("test_wire: %lu packets, seed %llu\n", rounds, (unsigned long long)seed);
    fflush(stdout); /* before anything can crash: the seed repeats it */
    state = seed;
    numbers_come_back();
    texts_come_back();
    packer_says_how_much_it_would_have_taken();
    skipping_takes_no_stack();
    counts_beyond_the_bytes_are_refused();
    grant_is_understood();
    numbers_out_of_bounds_are_refused();
    every_cut_is_refused();
    refusals_are_cut_to_size_and_cleaned();
    names_are_refused_if("prices", 6, 0);
    names_are_refused_if("pri\0es", 6, -EBADMSG);
    names_are_refused_if("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
                         "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
                         "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", 256, -EBADMSG);
    unknown_messages_are_passed_over();
    for (unsigned long i = 0; i < rounds; i++)
        fuzz_one();
    puts("test_wire: ok");
    return 0;
}
