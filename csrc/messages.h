/*
 * The control messages that a C client sends and receives, as bytes and as structs; docs/wire-protocol.md describes all of
 * them. No input and output here, and no allocation: a message is written into, and read from, a buffer of the caller's.
 */
#ifndef SHMD_MESSAGES_H
#define SHMD_MESSAGES_H

#include "client.h"
#include "wire.h"

#define SHMD_PROTOCOL_MAJOR 1u
#define SHMD_PROTOCOL_MINOR 0u
#define SHMD_MESSAGE_BYTES_MAX 65536u /* one packet */
#define SHMD_REQUEST_BYTES_MAX 1024u  /* of those that a C client sends: a topic's name and its options */
#define SHMD_TOPIC_NAME_BYTES_MAX 255u
#define SHMD_CLIENT_NAME_BYTES_MAX 64u

enum shmd_reply_type {
    SHMD_REPLY_OTHER, /* a message that this client knows nothing of, or need not know */
    SHMD_REPLY_WELCOME,
    SHMD_REPLY_DONE,
    SHMD_REPLY_REFUSED,
    SHMD_REPLY_TOPIC,
    SHMD_REPLY_PUBLISHER,
    SHMD_REPLY_SUBSCRIBER,
    SHMD_REPLY_RESUMED,
    SHMD_REPLY_SEGMENT,
    SHMD_EVENT_TOPIC_ADDED,
    SHMD_EVENT_TOPIC_GONE,
    SHMD_EVENT_SEGMENT_GONE,
    SHMD_EVENT_UNTETHERED,
};

/* Any message from the daemon. What its type does not have is zero. */
struct shmd_reply {
    enum shmd_reply_type type;
    uint64_t id;
    uint32_t fds;                             /* how many descriptors come beside it */
    uint32_t major, minor, roster_id;         /* welcome */
    uint64_t client;
    uint8_t instance_id[16];
    bool resumed, settling;
    char code[48], message[512], hint[512];   /* refused; cut off if they are longer */
    struct shmd_topic_info topic;             /* topic, publisher, subscriber */
    struct shmd_segment_info segment;         /* segment */
    uint32_t publisher, slot, incarnation;
    bool from_start;
    uint64_t watch, handle;                   /* events */
    char topic_name[SHMD_TOPIC_NAME_BYTES_MAX + 1];
    uint8_t topic_id[16]; /* or a segment's */
};

/* -EBADMSG if it is no message, lacks a field, or holds one that cannot be. */
int shmd_reply_decode(const uint8_t *packet, size_t size, struct shmd_reply *replyp);
/* The errno (positive) for a refusal's code. */
int shmd_code_errno(const char *code);

struct shmd_request {
    uint64_t id;
    struct shmd_packer packer;
    uint8_t bytes[SHMD_REQUEST_BYTES_MAX];
};

/* Begin a request with so many fields beside its type and id, which the caller packs. */
void shmd_request_begin(struct shmd_request *r, const char *type, uint64_t id, uint32_t fields);
void shmd_request_text(struct shmd_request *r, const char *field, const char *value);
void shmd_request_uint(struct shmd_request *r, const char *field, uint64_t value);
void shmd_request_bool(struct shmd_request *r, const char *field, bool value);
void shmd_request_options(struct shmd_request *r, const struct shmd_topic_options *options);
void shmd_request_segment_options(struct shmd_request *r, const struct shmd_segment_options *options);

#endif
