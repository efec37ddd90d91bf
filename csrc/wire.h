/*
 * msgpack, as much as shmd needs: what the control messages are made of, and good enough for small records. Neither side
 * allocates. A C++ program may include this.
 *
 *     uint8_t bytes[64];
 *     struct shmd_packer packer = {bytes, sizeof bytes, 0};
 *     shmd_pack_map(&packer, 1);
 *     shmd_pack_text(&packer, "px");
 *     shmd_pack_double(&packer, 101.25);
 *     if (shmd_packed(&packer)) use(bytes, packer.size);
 */
#ifndef SHMD_WIRE_H
#define SHMD_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"

SHMD_API_BEGIN

/* --- packing: `size` counts on where the bytes no longer fit, so that it tells how many it would have taken ---------- */

struct shmd_packer {
    uint8_t *data;
    size_t capacity;
    size_t size;
};

/* Whether all that was packed has found room. */
static inline bool shmd_packed(const struct shmd_packer *packer) { return packer->size <= packer->capacity; }

void shmd_pack_nil(struct shmd_packer *packer);
void shmd_pack_bool(struct shmd_packer *packer, bool value);
void shmd_pack_uint(struct shmd_packer *packer, uint64_t value);
void shmd_pack_int(struct shmd_packer *packer, int64_t value);
void shmd_pack_double(struct shmd_packer *packer, double value);
void shmd_pack_text(struct shmd_packer *packer, const char *text);
void shmd_pack_str(struct shmd_packer *packer, const char *text, uint32_t size);
void shmd_pack_bin(struct shmd_packer *packer, const uint8_t *bytes, uint32_t size);
/* `count` values follow; of a map, `count` pairs of a key and a value. */
void shmd_pack_array(struct shmd_packer *packer, uint32_t count);
void shmd_pack_map(struct shmd_packer *packer, uint32_t count);

/* --- unpacking: one item after the other; a container's item says how many follow ------------------------------------ */

struct shmd_unpacker {
    const uint8_t *at;
    const uint8_t *end;
};

enum shmd_kind {
    SHMD_NIL,
    SHMD_BOOL,  /* number */
    SHMD_UINT,  /* number */
    SHMD_INT,   /* negative: integer */
    SHMD_FLOAT, /* real */
    SHMD_STR,   /* bytes, size: not terminated */
    SHMD_BIN,   /* bytes, size */
    SHMD_ARRAY, /* size: values that follow */
    SHMD_MAP,   /* size: pairs that follow */
    SHMD_EXT,   /* bytes, size; number: its type as a byte */
};

struct shmd_item {
    enum shmd_kind kind;
    uint32_t size;
    uint64_t number;
    int64_t integer;
    double real;
    const uint8_t *bytes;
};

/* The next item. -EBADMSG: cut off, no msgpack, or a container that says it holds more than the bytes that are left. */
int shmd_unpack(struct shmd_unpacker *unpacker, struct shmd_item *itemp);
/* Pass over one whole value, however deep: no recursion, and never more steps than there are bytes. -EBADMSG. */
int shmd_unpack_skip(struct shmd_unpacker *unpacker);
/* Whether a SHMD_STR item is this text. */
bool shmd_item_is(const struct shmd_item *item, const char *text);

SHMD_API_END

#endif
