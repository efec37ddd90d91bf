/*
 * msgpack. What is unpacked comes from a peer: every length is checked against the bytes that are left before it is used,
 * and a container's count too, since each value it holds takes a byte at least. So no count can make anybody loop longer,
 * or allocate more, than the packet is long.
 */
#include <errno.h>
#include <string.h>

#include "wire.h"

static void put(struct shmd_packer *packer, const void *bytes, size_t size) {
    size_t used = packer->size;
    packer->size = used > SIZE_MAX - size ? SIZE_MAX : used + size;
    if (packer->size <= packer->capacity && size > 0)
        memcpy(packer->data + used, bytes, size);
}

/* A first byte, then `bytes` bytes of value, most significant first. */
static void put_number(struct shmd_packer *packer, uint8_t first, uint64_t value, unsigned bytes) {
    uint8_t out[9] = {first};
    for (unsigned i = 0; i < bytes; i++)
        out[1 + i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
    put(packer, out, 1 + bytes);
}

void shmd_pack_nil(struct shmd_packer *packer) { put_number(packer, 0xc0, 0, 0); }

void shmd_pack_bool(struct shmd_packer *packer, bool value) { put_number(packer, value ? 0xc3 : 0xc2, 0, 0); }

void shmd_pack_uint(struct shmd_packer *packer, uint64_t value) {
    if (value < 0x80)
        put_number(packer, (uint8_t)value, 0, 0);
    else if (value <= UINT8_MAX)
        put_number(packer, 0xcc, value, 1);
    else if (value <= UINT16_MAX)
        put_number(packer, 0xcd, value, 2);
    else if (value <= UINT32_MAX)
        put_number(packer, 0xce, value, 4);
    else
        put_number(packer, 0xcf, value, 8);
}

void shmd_pack_int(struct shmd_packer *packer, int64_t value) {
    if (value >= 0)
        shmd_pack_uint(packer, (uint64_t)value);
    else if (value >= -32)
        put_number(packer, (uint8_t)value, 0, 0);
    else
        put_number(packer, 0xd3, (uint64_t)value, 8);
}

void shmd_pack_double(struct shmd_packer *packer, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_number(packer, 0xcb, bits, 8);
}

void shmd_pack_text(struct shmd_packer *packer, const char *text) {
    size_t size = strlen(text);
    shmd_pack_str(packer, text, size > UINT32_MAX ? UINT32_MAX : (uint32_t)size);
}

void shmd_pack_str(struct shmd_packer *packer, const char *text, uint32_t size) {
    if (size < 32)
        put_number(packer, (uint8_t)(0xa0 | size), 0, 0);
    else if (size <= UINT8_MAX)
        put_number(packer, 0xd9, size, 1);
    else if (size <= UINT16_MAX)
        put_number(packer, 0xda, size, 2);
    else
        put_number(packer, 0xdb, size, 4);
    put(packer, text, size);
}

void shmd_pack_bin(struct shmd_packer *packer, const uint8_t *bytes, uint32_t size) {
    if (size <= UINT8_MAX)
        put_number(packer, 0xc4, size, 1);
    else if (size <= UINT16_MAX)
        put_number(packer, 0xc5, size, 2);
    else
        put_number(packer, 0xc6, size, 4);
    put(packer, bytes, size);
}

static void put_count(struct shmd_packer *packer, uint8_t fix, uint8_t wide, uint32_t count) {
    if (count < 16)
        put_number(packer, (uint8_t)(fix | count), 0, 0);
    else if (count <= UINT16_MAX)
        put_number(packer, wide, count, 2);
    else
        put_number(packer, (uint8_t)(wide + 1), count, 4);
}

void shmd_pack_array(struct shmd_packer *packer, uint32_t count) { put_count(packer, 0x90, 0xdc, count); }

void shmd_pack_map(struct shmd_packer *packer, uint32_t count) { put_count(packer, 0x80, 0xde, count); }

/* --- unpacking --- */

static size_t left(const struct shmd_unpacker *unpacker) { return (size_t)(unpacker->end - unpacker->at); }

static int take_number(struct shmd_unpacker *unpacker, unsigned bytes, uint64_t *valuep) {
    if (left(unpacker) < bytes)
        return -EBADMSG;
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | *unpacker->at++;
    *valuep = value;
    return 0;
}

static int take_bytes(struct shmd_unpacker *unpacker, struct shmd_item *item, enum shmd_kind kind, uint64_t size) {
    if (size > left(unpacker))
        return -EBADMSG;
    item->kind = kind;
    item->bytes = unpacker->at;
    item->size = (uint32_t)size;
    unpacker->at += size;
    return 0;
}

static int take_container(struct shmd_unpacker *unpacker, struct shmd_item *item, enum shmd_kind kind, uint64_t count) {
    if (count * (kind == SHMD_MAP ? 2 : 1) > left(unpacker))
        return -EBADMSG;
    item->kind = kind;
    item->size = (uint32_t)count;
    return 0;
}

static int take_sized(struct shmd_unpacker *unpacker, struct shmd_item *item, enum shmd_kind kind, unsigned width) {
    uint64_t size;
    if (take_number(unpacker, width, &size) != 0)
        return -EBADMSG;
    if (kind == SHMD_ARRAY || kind == SHMD_MAP)
        return take_container(unpacker, item, kind, size);
    if (kind == SHMD_EXT && take_number(unpacker, 1, &item->number) != 0)
        return -EBADMSG;
    return take_bytes(unpacker, item, kind, size);
}

static int take_signed(struct shmd_unpacker *unpacker, struct shmd_item *item, unsigned width) {
    uint64_t value;
    if (take_number(unpacker, width, &value) != 0)
        return -EBADMSG;
    uint64_t sign = 1ULL << (8 * width - 1);
    item->integer = (int64_t)((value ^ sign) - sign);
    item->number = (uint64_t)item->integer;
    item->kind = item->integer < 0 ? SHMD_INT : SHMD_UINT;
    return 0;
}

static int take_float(struct shmd_unpacker *unpacker, struct shmd_item *item, unsigned width) {
    uint64_t bits;
    if (take_number(unpacker, width, &bits) != 0)
        return -EBADMSG;
    item->kind = SHMD_FLOAT;
    if (width == 8) {
        memcpy(&item->real, &bits, sizeof item->real);
    } else {
        uint32_t half = (uint32_t)bits;
        float real;
        memcpy(&real, &half, sizeof real);
        item->real = (double)real;
    }
    return 0;
}

/* What begins with 0xc0 to 0xdf. */
static int take_marked(struct shmd_unpacker *unpacker, struct shmd_item *item, uint8_t first) {
    switch (first) {
    case 0xc0:
        item->kind = SHMD_NIL;
        return 0;
    case 0xc2:
    case 0xc3:
        item->kind = SHMD_BOOL;
        item->number = first & 1u;
        return 0;
    case 0xc4:
    case 0xc5:
    case 0xc6:
        return take_sized(unpacker, item, SHMD_BIN, 1u << (first - 0xc4));
    case 0xc7:
    case 0xc8:
    case 0xc9:
        return take_sized(unpacker, item, SHMD_EXT, 1u << (first - 0xc7));
    case 0xca:
    case 0xcb:
        return take_float(unpacker, item, first == 0xca ? 4 : 8);
    case 0xcc:
    case 0xcd:
    case 0xce:
    case 0xcf:
        item->kind = SHMD_UINT;
        return take_number(unpacker, 1u << (first - 0xcc), &item->number);
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3:
        return take_signed(unpacker, item, 1u << (first - 0xd0));
    case 0xd4:
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xd8:
        if (take_number(unpacker, 1, &item->number) != 0)
            return -EBADMSG;
        return take_bytes(unpacker, item, SHMD_EXT, 1u << (first - 0xd4));
    case 0xd9:
    case 0xda:
    case 0xdb:
        return take_sized(unpacker, item, SHMD_STR, 1u << (first - 0xd9));
    case 0xdc:
    case 0xdd:
        return take_sized(unpacker, item, SHMD_ARRAY, first == 0xdc ? 2 : 4);
    case 0xde:
    case 0xdf:
        return take_sized(unpacker, item, SHMD_MAP, first == 0xde ? 2 : 4);
    default:
        return -EBADMSG;
    }
}

int shmd_unpack(struct shmd_unpacker *unpacker, struct shmd_item *itemp) {
    *itemp = (struct shmd_item){.kind = SHMD_NIL};
    if (left(unpacker) == 0)
        return -EBADMSG;
    uint8_t first = *unpacker->at++;
    if (first < 0x80) {
        itemp->kind = SHMD_UINT;
        itemp->number = first;
        return 0;
    }
    if (first < 0x90)
        return take_container(unpacker, itemp, SHMD_MAP, first & 0x0fu);
    if (first < 0xa0)
        return take_container(unpacker, itemp, SHMD_ARRAY, first & 0x0fu);
    if (first < 0xc0)
        return take_bytes(unpacker, itemp, SHMD_STR, first & 0x1fu);
    if (first < 0xe0)
        return take_marked(unpacker, itemp, first);
    itemp->kind = SHMD_INT;
    itemp->integer = (int64_t)first - 0x100;
    itemp->number = (uint64_t)itemp->integer;
    return 0;
}

int shmd_unpack_skip(struct shmd_unpacker *unpacker) {
    uint64_t due = 1;
    while (due > 0) {
        struct shmd_item item;
        if (shmd_unpack(unpacker, &item) != 0)
            return -EBADMSG;
        due--;
        if (item.kind == SHMD_ARRAY || item.kind == SHMD_MAP)
            due += (uint64_t)item.size * (item.kind == SHMD_MAP ? 2 : 1);
        if (due > left(unpacker))
            return -EBADMSG;
    }
    return 0;
}

bool shmd_item_is(const struct shmd_item *item, const char *text) {
    return item->kind == SHMD_STR && strlen(text) == item->size && memcmp(item->bytes, text, item->size) == 0;
}
