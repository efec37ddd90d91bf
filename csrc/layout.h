/*
 * What lies in shared memory, byte for byte. docs/memory-layout.md is checked against this file.
 *
 * All words are little-endian. Positions are 64-bit byte counts since creation: they never wrap and are multiples of 8;
 * position & (capacity - 1) is the offset in the ring. Offsets, never pointers, are stored.
 *
 * A topic's LOG segment (publishers write, subscribers map it read-only):
 *
 *   0x0000 +--------------------------------------------------------------+
 *          | magic            u64 | version u32      | header_bytes u32   |  identity: written once, by the daemon,
 *   0x0010 | capacity         u64 | flags   u32      | name_bytes   u32   |  magic last, with release
 *   0x0020 | instance_id  16 bytes                                        |
 *   0x0030 | topic_id     16 bytes                                        |
 *   0x0040 | created_ns       u64 | reserved                              |
 *   0x0080 | name         256 bytes, zero-terminated                      |
 *   0x0180 | reserved                                                     |
 *          +--------------------------------------------------------------+
 *   0x0200 | tail             u64 : end of the last committed record      |  each on a cache line of its own:
 *   0x0240 | head             u64 : start of the oldest record kept       |  what publishers write
 *          | claim            u64 : where head is about to go (`wait`)    |
 *   0x0280 | lock             u32 : robust-futex word, owner's TID        |
 *   0x02c0 | rung             u64 | space_armed u64                       |
 *   0x0300 | published        u64 | published_bytes u64 | takeovers u64   |
 *   0x0340 | reserved                                                     |
 *   0x1000 +--------------------------------------------------------------+
 *          | ring: capacity bytes                                         |
 *          +--------------------------------------------------------------+
 *
 * A RECORD, at a multiple of 8, never across the ring's end:
 *
 *      +0  | length u32 | kind u32     |   length: of the payload, in bytes
 *      +8  | seq              u64      |   1, 2, 3, ... without gaps
 *      +16 | time_ns          u64      |   CLOCK_REALTIME at commit
 *      +24 | publisher u32 | checksum u32 (0 = none)
 *      +32 | payload ... padding to 8  |
 *      end-4 |             length u32  |   again, so that the newest record is found from tail
 *
 * A PADDING record fills the ring's end: | length u32 = bytes to the end | kind u32 = 2 | anything |.
 *
 * A topic's CTL segment (every participant writes, nobody trusts):
 *
 *   0x0000 | magic            u64 | version u32      | header_bytes u32   |
 *   0x0010 | slot_count u32 | reserved u32           | reserved           |
 *   0x0020 | topic_id     16 bytes                                        |
 *   0x0040 | armed            u64 : readers that went to sleep            |
 *   0x0080 | space_rung       u64                                         |
 *   0x00c0 | joins            u64 : bumped when a tether appears          |
 *   0x0100 | slot_high        u32 : slots ever granted                    |
 *   0x0140 | reserved                                                     |
 *   0x0800 | waiters[256]     u64 : publishers asleep, FIFO topics only   |
 *   0x1000 | slot[slot_count], 64 bytes each                              |
 *
 * A SLOT:  | word u64 | lost u64 | asleep u64 : FIFO topics only | reserved |
 *
 *   word:  63 ........ 34 | 33       | 32   | 31 ............ 0
 *          incarnation    | tethered | live | cursor / 8, low 32 bits
 *
 *   The cursor is within 32 GiB below tail, so its low bits tell the whole position.
 *   Incarnation 0: nobody's. One word, so that a take-over and a
 *   cursor store are each one compare-and-swap: who no longer holds the slot cannot move its cursor.
 *
 * A MARK, `asleep` or one of `waiters`: | incarnation, or publisher's number u32 | how many sleeps so far u32 |; 0: none.
 *   No two sleeps have the same mark, so that a compare-and-swap clears only the one that was rung for.
 *
 * A CELL, at a multiple of 8 in a segment of the user's, who chose the place. Zeros are a cell that nobody stored to:
 *
 *      +0  | size     u32 | magic u32  |   one word: what lies here, and how large a value is; stored by the first writer
 *      +8  | index            u64      |   values stored so far; the newest lies in buffer index & 1
 *      +16 | begun            u64      |   number of the store that was begun last: index, or index + 1
 *      +24 | lock u32     | reserved   |   robust-futex word: writers take turns; readers never look at it
 *      +32 | buffer 0: size, padded to 8 |
 *          | buffer 1: size, padded to 8 |
 */
#ifndef SHMD_LAYOUT_H
#define SHMD_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "atomics.h"

#define SHMD_LOG_MAGIC 0x31474f4c444d4853ULL /* "SHMDLOG1" in memory */
#define SHMD_CTL_MAGIC 0x314c5443444d4853ULL /* "SHMDCTL1" in memory */
#define SHMD_LAYOUT_MAJOR 1u
#define SHMD_LAYOUT_MINOR 1u
#define SHMD_HEADER_BYTES 4096u
#define SHMD_NAME_BYTES 256u
#define SHMD_CAPACITY_MIN 4096ULL
#define SHMD_CAPACITY_MAX (8ULL << 30)
#define SHMD_SLOTS_MAX 65536u
#define SHMD_WAITERS 256u

#define SHMD_FLAG_WAIT 1u      /* full: publishers wait for tethered subscribers (else: the oldest is given up) */
#define SHMD_FLAG_EXCLUSIVE 2u /* one publisher, no lock */
#define SHMD_FLAG_FIFO 4u      /* sleepers are woken through FIFOs (else: an eventfd) */

#define SHMD_CELL_MAGIC 0x314c4543u      /* "CEL1" in memory */
#define SHMD_CELL_SIZE_MAX (1u << 20)    /* a value is copied in one go, and a reader that is overtaken copies it again */

#define SHMD_KIND_DATA 1u
#define SHMD_KIND_PADDING 2u

struct shmd_log_header {
    shmd_a64 magic;
    uint32_t version;
    uint32_t header_bytes;
    uint64_t capacity;
    uint32_t flags;
    uint32_t name_bytes;
    uint8_t instance_id[16];
    uint8_t topic_id[16];
    uint64_t created_ns;
    uint8_t reserved_identity[56];
    char name[SHMD_NAME_BYTES];
    uint8_t reserved_name[128];

    shmd_a64 tail;
    uint8_t reserved_tail[56];
    shmd_a64 head;
    shmd_a64 claim;
    uint8_t reserved_head[48];
    shmd_a32 lock;
    uint8_t reserved_lock[60];
    shmd_a64 rung;
    shmd_a64 space_armed;
    uint8_t reserved_bells[48];
    shmd_a64 published;
    shmd_a64 published_bytes;
    shmd_a64 takeovers;
    uint8_t reserved_counters[40];
    uint8_t reserved_end[3264];
};

struct shmd_record {
    uint32_t length;
    uint32_t kind;
    uint64_t seq;
    uint64_t time_ns;
    uint32_t publisher;
    uint32_t checksum;
};

struct shmd_ctl_header {
    shmd_a64 magic;
    uint32_t version;
    uint32_t header_bytes;
    uint32_t slot_count;
    uint8_t reserved_identity[12];
    uint8_t topic_id[16];
    uint8_t reserved_id[16];
    shmd_a64 armed;
    uint8_t reserved_armed[56];
    shmd_a64 space_rung;
    uint8_t reserved_rung[56];
    shmd_a64 joins;
    uint8_t reserved_joins[56];
    shmd_a32 slot_high;
    uint8_t reserved_high[60];
    uint8_t reserved_end[1728];
    shmd_a64 waiters[SHMD_WAITERS];
};

struct shmd_slot {
    shmd_a64 word;
    shmd_a64 lost;
    shmd_a64 asleep;
    uint8_t reserved[40];
};

struct shmd_cell_header {
    shmd_a64 identity;
    shmd_a64 index;
    shmd_a64 begun;
    shmd_a32 lock;
    uint8_t reserved[4];
};

/* Every field, once: the assertions below and the exported table (docs, tests) come from these lists. */
#define SHMD_LOG_FIELDS(X)   \
    X(magic, 0x000)          \
    X(version, 0x008)        \
    X(header_bytes, 0x00c)   \
    X(capacity, 0x010)       \
    X(flags, 0x018)          \
    X(name_bytes, 0x01c)     \
    X(instance_id, 0x020)    \
    X(topic_id, 0x030)       \
    X(created_ns, 0x040)     \
    X(name, 0x080)           \
    X(tail, 0x200)           \
    X(head, 0x240)           \
    X(claim, 0x248)          \
    X(lock, 0x280)           \
    X(rung, 0x2c0)           \
    X(space_armed, 0x2c8)    \
    X(published, 0x300)      \
    X(published_bytes, 0x308) \
    X(takeovers, 0x310)

#define SHMD_RECORD_FIELDS(X) \
    X(length, 0)              \
    X(kind, 4)                \
    X(seq, 8)                 \
    X(time_ns, 16)            \
    X(publisher, 24)          \
    X(checksum, 28)

#define SHMD_CTL_FIELDS(X)  \
    X(magic, 0x000)         \
    X(version, 0x008)       \
    X(header_bytes, 0x00c)  \
    X(slot_count, 0x010)    \
    X(topic_id, 0x020)      \
    X(armed, 0x040)         \
    X(space_rung, 0x080)    \
    X(joins, 0x0c0)         \
    X(slot_high, 0x100)     \
    X(waiters, 0x800)

#define SHMD_SLOT_FIELDS(X) \
    X(word, 0)              \
    X(lost, 8)              \
    X(asleep, 16)

#define SHMD_CELL_FIELDS(X) \
    X(identity, 0)          \
    X(index, 8)             \
    X(begun, 16)            \
    X(lock, 24)

#define SHMD_ASSERT_LOG(f, at) _Static_assert(offsetof(struct shmd_log_header, f) == (at), "log." #f);
#define SHMD_ASSERT_RECORD(f, at) _Static_assert(offsetof(struct shmd_record, f) == (at), "record." #f);
#define SHMD_ASSERT_CTL(f, at) _Static_assert(offsetof(struct shmd_ctl_header, f) == (at), "ctl." #f);
#define SHMD_ASSERT_SLOT(f, at) _Static_assert(offsetof(struct shmd_slot, f) == (at), "slot." #f);
#define SHMD_ASSERT_CELL(f, at) _Static_assert(offsetof(struct shmd_cell_header, f) == (at), "cell." #f);
SHMD_LOG_FIELDS(SHMD_ASSERT_LOG)
SHMD_RECORD_FIELDS(SHMD_ASSERT_RECORD)
SHMD_CTL_FIELDS(SHMD_ASSERT_CTL)
SHMD_SLOT_FIELDS(SHMD_ASSERT_SLOT)
SHMD_CELL_FIELDS(SHMD_ASSERT_CELL)
_Static_assert(sizeof(struct shmd_log_header) == SHMD_HEADER_BYTES, "log header is a page");
_Static_assert(sizeof(struct shmd_ctl_header) == SHMD_HEADER_BYTES, "ctl header is a page");
_Static_assert(sizeof(struct shmd_record) == 32, "record header");
_Static_assert(sizeof(struct shmd_slot) == 64, "a slot is a cache line");
_Static_assert(sizeof(struct shmd_cell_header) == 32, "cell header");

#define SHMD_RECORD_OVERHEAD ((uint64_t)sizeof(struct shmd_record) + 4u)

/* Bytes in the ring of a record with this much payload. */
static inline uint64_t shmd_record_bytes(uint64_t length) { return (SHMD_RECORD_OVERHEAD + length + 7u) & ~7ULL; }

/* Bytes that a cell for values of this size takes, header and both buffers; 0: no value has such a size. */
static inline size_t shmd_cell_bytes(size_t size) {
    if (size == 0 || size > SHMD_CELL_SIZE_MAX)
        return 0;
    return sizeof(struct shmd_cell_header) + 2 * ((size + 7u) & ~(size_t)7);
}

/* The slot word. */
#define SHMD_WORD_LIVE (1ULL << 32)
#define SHMD_WORD_TETHERED (1ULL << 33)
#define SHMD_WORD_INCARNATION_SHIFT 34
#define SHMD_INCARNATION_MAX ((1u << 30) - 1u)

static inline uint64_t shmd_word(uint32_t incarnation, uint64_t flags, uint64_t position) {
    return ((uint64_t)incarnation << SHMD_WORD_INCARNATION_SHIFT) | flags | ((position >> 3) & 0xffffffffu);
}

static inline uint32_t shmd_word_incarnation(uint64_t word) { return (uint32_t)(word >> SHMD_WORD_INCARNATION_SHIFT); }

/* The position at or below `tail` that the word's low bits stand for; a forged word gives one that no check lets pass. */
static inline uint64_t shmd_word_position(uint64_t word, uint64_t tail) {
    return tail - ((uint64_t)((uint32_t)(tail >> 3) - (uint32_t)word) << 3);
}

#endif
