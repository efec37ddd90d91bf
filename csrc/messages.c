/*
 * Control messages. A reply is decoded through a table of its type's fields: each value is checked against its kind and
 * bounds before it is stored, unknown fields are passed over (a later minor version may add some), and a field that must be
 * there is missed. What is stored is always terminated and within its bounds, whatever the peer sent.
 */
#include <errno.h>
#include <string.h>

#include "messages.h"

enum field_kind {
    UINT,  /* a number up to `max` */
    BOOL,
    TEXT,  /* cut off if it is longer than the array */
    NAME,  /* may not be longer, nor hold a zero */
    ID16,
    WORD,  /* one of two words: true for the first */
    SYSV_ID, /* a number from -1, which is none, up to `max` */
    TOPIC,   /* a map of a topic's own fields */
    SEGMENT, /* of a segment's */
};

struct field {
    const char *name;
    enum field_kind kind;
    bool required;
    size_t offset;
    size_t size;
    uint64_t max;
    const char *words[2];
};

#define U32_MAX 0xffffffffull
#define U63_MAX 0x7fffffffffffffffull
#define ID_MAX (1ull << 53)
#define SYSV_ID_MAX 0x7fffffffull
#define SLOTS_MAX 1023u
#define AT(type, member) offsetof(struct type, member), sizeof(((struct type *)0)->member)
#define NUMBER(type, member, max_value) {#member, UINT, true, AT(type, member), max_value, {NULL, NULL}}
#define OPTIONAL_FLAG(type, member) {#member, BOOL, false, AT(type, member), 0, {NULL, NULL}}

static const struct field topic_fields[] = {
    {"name", NAME, true, AT(shmd_topic_info, name), 0, {NULL, NULL}},
    {"topic_id", ID16, true, AT(shmd_topic_info, topic_id), 0, {NULL, NULL}},
    NUMBER(shmd_topic_info, log_id, U32_MAX),
    NUMBER(shmd_topic_info, log_key, U32_MAX),
    NUMBER(shmd_topic_info, ctl_id, U32_MAX),
    NUMBER(shmd_topic_info, ctl_key, U32_MAX),
    NUMBER(shmd_topic_info, size_bytes, U63_MAX),
    NUMBER(shmd_topic_info, mode, 0777),
    NUMBER(shmd_topic_info, uid, U32_MAX),
    NUMBER(shmd_topic_info, gid, U32_MAX),
    {"when_full", WORD, true, AT(shmd_topic_info, waits), 0, {"wait", "discard-old"}},
    {"exclusive", BOOL, true, AT(shmd_topic_info, exclusive), 0, {NULL, NULL}},
    {"lifetime", WORD, false, AT(shmd_topic_info, attached), 0, {"attached", "os"}},
    OPTIONAL_FLAG(shmd_topic_info, hostile),
    {"notifier", WORD, false, AT(shmd_topic_info, fifo), 0, {"fifo", "eventfd"}},
    {"fifo_dir", NAME, false, AT(shmd_topic_info, fifo_dir), 0, {NULL, NULL}},
    {NULL, UINT, false, 0, 0, 0, {NULL, NULL}},
};

static const struct field segment_fields[] = {
    {"name", NAME, true, AT(shmd_segment_info, name), 0, {NULL, NULL}},
    {"segment_id", ID16, true, AT(shmd_segment_info, segment_id), 0, {NULL, NULL}},
    {"id", SYSV_ID, true, AT(shmd_segment_info, id), SYSV_ID_MAX, {NULL, NULL}},
    NUMBER(shmd_segment_info, key, U32_MAX),
    {"sem_id", SYSV_ID, false, AT(shmd_segment_info, sem_id), SYSV_ID_MAX, {NULL, NULL}},
    {"sem_key", UINT, false, AT(shmd_segment_info, sem_key), U32_MAX, {NULL, NULL}},
    NUMBER(shmd_segment_info, size_bytes, U63_MAX),
    NUMBER(shmd_segment_info, mode, 0777),
    NUMBER(shmd_segment_info, uid, U32_MAX),
    NUMBER(shmd_segment_info, gid, U32_MAX),
    NUMBER(shmd_segment_info, creator_uid, U32_MAX),
    OPTIONAL_FLAG(shmd_segment_info, adopted),
    {"backing", WORD, false, AT(shmd_segment_info, file), 0, {"file", "memory"}},
    {"sync", NAME, false, AT(shmd_segment_info, sync), 0, {NULL, NULL}},
    {"path", NAME, false, AT(shmd_segment_info, path), 0, {NULL, NULL}},
    {"notifier", WORD, false, AT(shmd_segment_info, counts), 0, {"fifo", "eventfd"}},
    {"fifo", NAME, false, AT(shmd_segment_info, fifo), 0, {NULL, NULL}},
    {"lifetime", WORD, false, AT(shmd_segment_info, attached), 0, {"attached", "os"}},
    {NULL, UINT, false, 0, 0, 0, {NULL, NULL}},
};

#define FDS_FIELD {"fds", UINT, false, AT(shmd_reply, fds), 3, {NULL, NULL}}
#define END_OF_FIELDS {NULL, UINT, false, 0, 0, 0, {NULL, NULL}}
#define ID_FIELD NUMBER(shmd_reply, id, ID_MAX)
#define TOPIC_FIELD {"topic", TOPIC, true, AT(shmd_reply, topic), 0, {NULL, NULL}}
#define TOPIC_NAME_FIELD {"topic", NAME, true, AT(shmd_reply, topic_name), 0, {NULL, NULL}}

static const struct field welcome_fields[] = {
    ID_FIELD,
    NUMBER(shmd_reply, major, U32_MAX),
    NUMBER(shmd_reply, minor, U32_MAX),
    NUMBER(shmd_reply, client, U63_MAX),
    NUMBER(shmd_reply, roster_id, U32_MAX),
    {"instance_id", ID16, true, AT(shmd_reply, instance_id), 0, {NULL, NULL}},
    OPTIONAL_FLAG(shmd_reply, resumed),
    OPTIONAL_FLAG(shmd_reply, settling),
    END_OF_FIELDS,
};
static const struct field plain_fields[] = {ID_FIELD, END_OF_FIELDS};
static const struct field resumed_fields[] = {ID_FIELD, FDS_FIELD, END_OF_FIELDS};
static const struct field refused_fields[] = {
    ID_FIELD,
    {"code", TEXT, true, AT(shmd_reply, code), 0, {NULL, NULL}},
    {"message", TEXT, true, AT(shmd_reply, message), 0, {NULL, NULL}},
    {"hint", TEXT, false, AT(shmd_reply, hint), 0, {NULL, NULL}},
    END_OF_FIELDS,
};
static const struct field topic_reply_fields[] = {ID_FIELD, TOPIC_FIELD, END_OF_FIELDS};
static const struct field publisher_fields[] = {
    ID_FIELD,
    TOPIC_FIELD,
    NUMBER(shmd_reply, publisher, U32_MAX),
    FDS_FIELD,
    END_OF_FIELDS,
};
static const struct field subscriber_fields[] = {
    ID_FIELD,
    TOPIC_FIELD,
    NUMBER(shmd_reply, slot, SLOTS_MAX),
    NUMBER(shmd_reply, incarnation, U32_MAX),
    {"from_start", BOOL, true, AT(shmd_reply, from_start), 0, {NULL, NULL}},
    FDS_FIELD,
    END_OF_FIELDS,
};
static const struct field segment_granted_fields[] = {
    ID_FIELD,
    {"segment", SEGMENT, true, AT(shmd_reply, segment), 0, {NULL, NULL}},
    FDS_FIELD,
    END_OF_FIELDS,
};
static const struct field topic_added_fields[] = {
    NUMBER(shmd_reply, watch, ID_MAX),
    TOPIC_NAME_FIELD,
    END_OF_FIELDS,
};
static const struct field topic_gone_fields[] = {
    TOPIC_NAME_FIELD,
    {"topic_id", ID16, true, AT(shmd_reply, topic_id), 0, {NULL, NULL}},
    END_OF_FIELDS,
};
static const struct field segment_gone_fields[] = {
    {"segment_id", ID16, true, AT(shmd_reply, topic_id), 0, {NULL, NULL}},
    END_OF_FIELDS,
};
static const struct field untethered_fields[] = {
    TOPIC_NAME_FIELD,
    NUMBER(shmd_reply, handle, ID_MAX),
    END_OF_FIELDS,
};

static const struct {
    const char *name;
    enum shmd_reply_type type;
    uint32_t fds; /* unless it says otherwise */
    const struct field *fields;
} types[] = {
    {"welcome", SHMD_REPLY_WELCOME, 0, welcome_fields},
    {"done", SHMD_REPLY_DONE, 0, plain_fields},
    {"refused", SHMD_REPLY_REFUSED, 0, refused_fields},
    {"topic", SHMD_REPLY_TOPIC, 0, topic_reply_fields},
    {"publisher", SHMD_REPLY_PUBLISHER, 2, publisher_fields},
    {"subscriber", SHMD_REPLY_SUBSCRIBER, 2, subscriber_fields},
    {"resumed", SHMD_REPLY_RESUMED, 2, resumed_fields},
    {"segment-granted", SHMD_REPLY_SEGMENT, 2, segment_granted_fields},
    {"topic-added", SHMD_EVENT_TOPIC_ADDED, 0, topic_added_fields},
    {"topic-gone", SHMD_EVENT_TOPIC_GONE, 0, topic_gone_fields},
    {"segment-gone", SHMD_EVENT_SEGMENT_GONE, 0, segment_gone_fields},
    {"untethered", SHMD_EVENT_UNTETHERED, 0, untethered_fields},
};
#define TYPES (sizeof types / sizeof *types)

static int store_number(const struct field *field, const struct shmd_item *item, uint8_t *to) {
    if (item->kind != SHMD_UINT || item->number > field->max)
        return -EBADMSG;
    uint32_t narrow = (uint32_t)item->number;
    if (field->size == sizeof narrow)
        memcpy(to, &narrow, sizeof narrow);
    else
        memcpy(to, &item->number, sizeof item->number);
    return 0;
}

static int store_sysv_id(const struct field *field, const struct shmd_item *item, uint8_t *to) {
    bool none = item->kind == SHMD_INT && item->integer == -1;
    if (!none && (item->kind != SHMD_UINT || item->number > field->max))
        return -EBADMSG;
    int32_t id = none ? -1 : (int32_t)item->number;
    memcpy(to, &id, sizeof id);
    return 0;
}

static int store_flag(uint8_t *to, bool value) {
    memcpy(to, &value, sizeof value);
    return 0;
}

static int store_text(const struct field *field, const struct shmd_item *item, uint8_t *to) {
    if (item->kind != SHMD_STR)
        return -EBADMSG;
    size_t size = item->size < field->size - 1 ? item->size : field->size - 1;
    if (field->kind == NAME && (size < item->size || memchr(item->bytes, 0, size) != NULL))
        return -EBADMSG;
    for (size_t i = 0; i < size; i++)
        to[i] = field->kind == TEXT && item->bytes[i] < ' ' ? ' ' : item->bytes[i]; /* it goes to terminals */
    to[size] = 0;
    return 0;
}

static int store(const struct field *field, const struct shmd_item *item, void *base) {
    uint8_t *to = (uint8_t *)base + field->offset;
    switch (field->kind) {
    case UINT:
        return store_number(field, item, to);
    case BOOL:
        return item->kind == SHMD_BOOL ? store_flag(to, item->number != 0) : -EBADMSG;
    case TEXT:
    case NAME:
        return store_text(field, item, to);
    case ID16:
        if (item->kind != SHMD_BIN || item->size != 16)
            return -EBADMSG;
        memcpy(to, item->bytes, 16);
        return 0;
    case WORD:
        if (shmd_item_is(item, field->words[0]))
            return store_flag(to, true);
        return shmd_item_is(item, field->words[1]) ? store_flag(to, false) : -EBADMSG;
    case SYSV_ID:
        return store_sysv_id(field, item, to);
    case TOPIC:
    case SEGMENT:
        break;
    }
    return -EBADMSG;
}

static const struct field *find_field(const struct field *fields, const struct shmd_item *key) {
    for (; fields->name != NULL; fields++)
        if (shmd_item_is(key, fields->name))
            return fields;
    return NULL;
}

static int decode_map(struct shmd_unpacker *unpacker, const struct field *fields, void *base);

static int decode_field(struct shmd_unpacker *unpacker, const struct field *field, void *base) {
    struct shmd_item item;
    if (field == NULL)
        return shmd_unpack_skip(unpacker);
    if (field->kind == TOPIC || field->kind == SEGMENT)
        return decode_map(unpacker, field->kind == TOPIC ? topic_fields : segment_fields,
                          (uint8_t *)base + field->offset);
    struct shmd_unpacker before = *unpacker;
    if (shmd_unpack(unpacker, &item) != 0)
        return -EBADMSG;
    if (item.kind == SHMD_NIL && !field->required)
        return 0;
    if (item.kind == SHMD_ARRAY || item.kind == SHMD_MAP) { /* never what is expected; store() says so */
        *unpacker = before;
        if (shmd_unpack_skip(unpacker) != 0)
            return -EBADMSG;
    }
    return store(field, &item, base);
}

/* A map of these fields, into the struct at `base`. */
static int decode_map(struct shmd_unpacker *unpacker, const struct field *fields, void *base) {
    struct shmd_item map, key;
    uint32_t seen = 0;
    if (shmd_unpack(unpacker, &map) != 0 || map.kind != SHMD_MAP)
        return -EBADMSG;
    for (uint32_t i = 0; i < map.size; i++) {
        if (shmd_unpack(unpacker, &key) != 0 || key.kind != SHMD_STR)
            return -EBADMSG;
        const struct field *field = find_field(fields, &key);
        if (decode_field(unpacker, field, base) != 0)
            return -EBADMSG;
        if (field != NULL)
            seen |= 1u << (field - fields);
    }
    for (const struct field *field = fields; field->name != NULL; field++)
        if (field->required && (seen & 1u << (field - fields)) == 0)
            return -EBADMSG;
    return 0;
}

/* Find the message's "type", wherever it stands in the map. */
static int find_type(struct shmd_unpacker unpacker, struct shmd_item *typep) {
    struct shmd_item map, key;
    if (shmd_unpack(&unpacker, &map) != 0 || map.kind != SHMD_MAP)
        return -EBADMSG;
    for (uint32_t i = 0; i < map.size; i++) {
        if (shmd_unpack(&unpacker, &key) != 0 || key.kind != SHMD_STR)
            return -EBADMSG;
        if (shmd_item_is(&key, "type"))
            return shmd_unpack(&unpacker, typep) == 0 && typep->kind == SHMD_STR ? 0 : -EBADMSG;
        if (shmd_unpack_skip(&unpacker) != 0)
            return -EBADMSG;
    }
    return -EBADMSG;
}

int shmd_reply_decode(const uint8_t *packet, size_t size, struct shmd_reply *replyp) {
    struct shmd_unpacker unpacker = {packet, packet + size};
    struct shmd_item type;
    *replyp = (struct shmd_reply){.type = SHMD_REPLY_OTHER, .segment = {.sem_id = -1}};
    if (find_type(unpacker, &type) != 0)
        return -EBADMSG;
    for (size_t i = 0; i < TYPES; i++) {
        if (!shmd_item_is(&type, types[i].name))
            continue;
        replyp->fds = types[i].fds;
        if (decode_map(&unpacker, types[i].fields, replyp) != 0)
            return -EBADMSG;
        replyp->type = types[i].type;
        return unpacker.at == unpacker.end ? 0 : -EBADMSG;
    }
    return shmd_unpack_skip(&unpacker) == 0 && unpacker.at == unpacker.end ? 0 : -EBADMSG;
}

int shmd_code_errno(const char *code) {
    static const struct {
        const char *code;
        int error;
    } codes[] = {
        {"no-such-topic", ENOENT},        {"topic-mismatch", EEXIST},
        {"topic-busy", EBUSY},            {"permission-denied", EACCES},
        {"limit-exceeded", EDQUOT},       {"version-mismatch", EPROTONOSUPPORT},
        {"namespace-mismatch", EXDEV},    {"protocol-error", EPROTO},
        {"invalid-name", EINVAL},         {"invalid-option", EINVAL},
        {"topic-removed", EIDRM},         {"segment-limit", ENOSPC},
        {"segment-no-memory", ENOMEM},    {"segment-access-denied", EACCES},
        {"segment-exists", EEXIST},       {"segment-mismatch", EEXIST},
        {"segment-not-found", ENOENT},    {"segment-removed", EIDRM},
        {"segment-invalid", EINVAL},
    };
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (strcmp(codes[i].code, code) == 0)
            return codes[i].error;
    return EREMOTEIO;
}

/* --- requests --- */

void shmd_request_begin(struct shmd_request *r, const char *type, uint64_t id, uint32_t fields) {
    r->id = id;
    r->packer = (struct shmd_packer){r->bytes, sizeof r->bytes, 0};
    shmd_pack_map(&r->packer, fields + 2);
    shmd_request_text(r, "type", type);
    shmd_request_uint(r, "id", id);
}

void shmd_request_text(struct shmd_request *r, const char *field, const char *value) {
    shmd_pack_text(&r->packer, field);
    shmd_pack_text(&r->packer, value);
}

void shmd_request_uint(struct shmd_request *r, const char *field, uint64_t value) {
    shmd_pack_text(&r->packer, field);
    shmd_pack_uint(&r->packer, value);
}

void shmd_request_bool(struct shmd_request *r, const char *field, bool value) {
    shmd_pack_text(&r->packer, field);
    shmd_pack_bool(&r->packer, value);
}

static void pack_double(struct shmd_request *r, const char *field, double value) {
    shmd_pack_text(&r->packer, field);
    shmd_pack_double(&r->packer, value);
}

void shmd_request_options(struct shmd_request *r, const struct shmd_topic_options *options) {
    static const struct shmd_topic_options none = {0};
    const struct shmd_topic_options *o = options != NULL ? options : &none;
    shmd_pack_text(&r->packer, "options");
    unsigned count = (o->size_bytes != 0) + 0u;
    count += (o->when_full != SHMD_WHEN_FULL_ANY) + 0u;
    count += (o->exclusive != SHMD_EITHER) + 0u;
    count += (o->mode != 0) + 0u;
    count += (o->attached != SHMD_EITHER) + 0u;
    count += (o->idle_ttl_s != 0) + 0u;
    count += (o->stall_timeout_s != 0) + 0u;
    count += (o->fifo != SHMD_EITHER) + 0u;
    shmd_pack_map(&r->packer, count);
    if (o->size_bytes != 0)
        shmd_request_uint(r, "size_bytes", o->size_bytes);
    if (o->when_full != SHMD_WHEN_FULL_ANY)
        shmd_request_text(r, "when_full", o->when_full == SHMD_WAIT ? "wait" : "discard-old");
    if (o->exclusive != SHMD_EITHER)
        shmd_request_bool(r, "exclusive", o->exclusive == SHMD_YES);
    if (o->mode != 0)
        shmd_request_uint(r, "mode", o->mode);
    if (o->attached != SHMD_EITHER)
        shmd_request_text(r, "lifetime", o->attached == SHMD_YES ? "attached" : "os");
    if (o->idle_ttl_s != 0)
        pack_double(r, "idle_ttl_s", o->idle_ttl_s);
    if (o->stall_timeout_s != 0)
        pack_double(r, "stall_timeout_s", o->stall_timeout_s);
    if (o->fifo != SHMD_EITHER)
        shmd_request_text(r, "notifier", o->fifo == SHMD_YES ? "fifo" : "eventfd");
}

void shmd_request_segment_options(struct shmd_request *r, const struct shmd_segment_options *o) {
    unsigned count = (o->size_bytes != 0) + 0u;
    count += (o->mode != 0) + 0u;
    count += (o->key != 0) + 0u;
    count += o->adopt + 0u;
    count += (o->file != SHMD_EITHER) + 0u;
    count += (o->attached != SHMD_EITHER) + 0u;
    shmd_pack_text(&r->packer, "options");
    shmd_pack_map(&r->packer, count);
    if (o->size_bytes != 0)
        shmd_request_uint(r, "size_bytes", o->size_bytes);
    if (o->mode != 0)
        shmd_request_uint(r, "mode", o->mode);
    if (o->key != 0)
        shmd_request_uint(r, "key", (uint32_t)o->key);
    if (o->adopt)
        shmd_request_bool(r, "adopt", true);
    if (o->file != SHMD_EITHER)
        shmd_request_text(r, "backing", o->file == SHMD_YES ? "file" : "memory");
    if (o->attached != SHMD_EITHER)
        shmd_request_text(r, "lifetime", o->attached == SHMD_YES ? "attached" : "os");
}
