/*
 * The C core of shmd: append to and read from a topic whose segments are already attached. No Python, no malloc but a
 * reader's copy buffer, no waiting; the only system calls are the doorbell's (bell.c) and a lock's one-time set-up.
 *
 * Results: 0 is done; a positive enum shmd_result is an answer to handle (full, empty and busy are no errors); a
 * negative number is -errno: -EUCLEAN for shared memory that no publisher writes, -EMSGSIZE for a record over the limit,
 * -ESTALE for a slot that belongs to somebody else by now, -ENOMEM.
 *
 * Every word read from shared memory is hostile: read once into a local, checked, then used.
 */
#ifndef SHMD_H
#define SHMD_H

#ifdef __cplusplus
#error "shmd.h is for C, since shared memory is described in C11 atomics; a C++ program includes client.h"
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"
#include "layout.h"

SHMD_API_BEGIN

/* --- lock.c: the lock word ------------------------------------------------------------------------------------------ */

/* SHMD_OK, SHMD_BUSY; *takenp tells whether a dead owner's lock was taken over. Never sleeps. */
int shmd_lock(shmd_a32 *word, bool *takenp);
void shmd_unlock(shmd_a32 *word);
/* What the kernel does when an owner dies, for an owner whose death it did not see (the daemon's, with a proof of death):
 * mark the word, if it still holds tid. */
bool shmd_lock_declare_dead(shmd_a32 *word, uint32_t tid);

/* --- log.c: the checked view of a topic ------------------------------------------------------------------------------ */

/* Process-private. capacity, mask, slot_count and flags are copies: what the memory says later changes nothing. */
struct shmd_log {
    struct shmd_log_header *header;
    uint8_t *ring;
    struct shmd_ctl_header *ctl; /* NULL for one who only looks */
    struct shmd_slot *slots;
    uint64_t capacity;
    uint64_t mask;
    uint64_t payload_max;
    uint32_t slot_count;
    uint32_t flags;
};

struct shmd_identity {
    uint64_t capacity;
    uint32_t flags;
    uint8_t instance_id[16];
    uint8_t topic_id[16];
    uint64_t created_ns;
    const char *name;
    size_t name_bytes;
};

struct shmd_stat {
    uint64_t head, tail, first_seq, last_seq, last_time_ns, published, published_bytes, takeovers;
    uint32_t lock_owner_tid;
};

uint64_t shmd_payload_max(uint64_t capacity);
bool shmd_capacity_ok(uint64_t capacity);
int shmd_log_format(void *log, size_t log_bytes, const struct shmd_identity *identity);
/* Fill *logp if the segments are what identity says (name and created_ns are not compared). ctl may be NULL. -EUCLEAN
 * otherwise. */
int shmd_log_open(struct shmd_log *logp, void *log, size_t log_bytes, void *ctl, size_t ctl_bytes,
                  const struct shmd_identity *identity);
/* A consistent head and tail. SHMD_AGAIN if they would not hold still, -EUCLEAN. */
int shmd_log_bounds(const struct shmd_log *log, uint64_t *headp, uint64_t *tailp);
/* Bytes that the record or padding at position takes in the ring, from its own first word: 0 if that cannot be one. */
uint64_t shmd_stored_bytes(const struct shmd_log *log, uint64_t position, uint64_t tail, uint64_t *lengthp);
/* Whether a first word of this kind and length, at this offset of the ring, is padding: it ends with the ring, and is no
 * longer than any record that could not fit there. */
bool shmd_is_padding(const struct shmd_log *log, uint64_t kind, uint64_t length, uint64_t offset);
/* Header of the last record before tail, and where it starts. SHMD_EMPTY if tail is 0. Check head afterwards. */
int shmd_last_record(const struct shmd_log *log, uint64_t head, uint64_t tail, struct shmd_record *recordp,
                     uint64_t *startp);
/* Copy out of the ring in relaxed words: safe beside a writer, who is then found out by a look at head. */
void shmd_copy_out(const struct shmd_log *log, void *to, uint64_t position, uint64_t bytes);
void shmd_log_stat(const struct shmd_log *log, struct shmd_stat *statp);
/* Copy the newest record into *bufferp (realloc'ed to *bufferp_bytes). SHMD_EMPTY, SHMD_AGAIN, -EUCLEAN, -ENOMEM. */
int shmd_newest(const struct shmd_log *log, uint8_t **bufferp, size_t *buffer_bytesp, struct shmd_view *viewp);

/* --- ctl.c: slots ---------------------------------------------------------------------------------------------------- */

size_t shmd_ctl_bytes(uint32_t slot_count);
int shmd_ctl_format(void *ctl, size_t ctl_bytes, uint32_t slot_count, const uint8_t topic_id[16]);
/* The daemon's: give a slot away, take it back. live: its holder counts as a subscriber from now on, standing at position
 * 0, and tethered there if asked; else from its join. */
int shmd_slot_grant(const struct shmd_log *log, uint32_t slot, uint32_t incarnation, bool live, bool tethered);
void shmd_slot_release(const struct shmd_log *log, uint32_t slot, uint32_t incarnation);
/* The slowest tethered cursor that is not below head, or tail if there is none. */
uint64_t shmd_slowest_cursor(const struct shmd_log *log, uint64_t head, uint64_t tail);
/* Take the tether away, if this incarnation has one: by the daemon, or by a full publisher with a proof of death. The
 * holder keeps its slot and finds out at its next cursor store. Ring the space bell afterwards. */
bool shmd_slot_untether(const struct shmd_log *log, uint32_t slot, uint32_t incarnation);
/* The same with a proof of death: the holder is no subscriber any more. The slot stays its own until the daemon has it. */
bool shmd_slot_bury(const struct shmd_log *log, uint32_t slot, uint32_t incarnation);
/* The first slot from *slotp on that a subscriber has joined, which *slotp then is; SHMD_EMPTY if there is none. */
int shmd_next_live(const struct shmd_log *log, uint32_t *slotp, uint32_t *incarnationp);
/* The slot of the slowest tethered cursor; SHMD_EMPTY if there is none. */
int shmd_slowest_slot(const struct shmd_log *log, uint32_t *slotp, uint32_t *incarnationp);

/* --- bell.c: waking those who sleep ---------------------------------------------------------------------------------- */

enum shmd_bell_kind {
    SHMD_BELL_EVENTFD, /* fd: an eventfd that was made with value 1 */
    SHMD_BELL_FIFO,    /* fd: the directory of the topic's FIFOs; O_PATH is enough */
};

/* How one kind of sleeper is woken. The descriptor is the caller's. */
struct shmd_bell {
    int fd;
    enum shmd_bell_kind kind;
};

enum shmd_sleepers { SHMD_READERS /* for records */, SHMD_PUBLISHERS /* for room */ };

/* The bell of the kind that the topic has. */
struct shmd_bell shmd_bell_of(const struct shmd_log *log, int fd);
/* Wake all who sleep. Never blocks, raises no SIGPIPE, and leaves errno alone. False: somebody could not be, for want of a
 * descriptor, or because the directory is no longer the topic's. */
bool shmd_bell_ring(const struct shmd_log *log, struct shmd_bell bell, enum shmd_sleepers who);
/* The same if anyone went to sleep since the last ring. */
void shmd_bell_check(const struct shmd_log *log, struct shmd_bell bell, enum shmd_sleepers who);
/* The name of a sleeper's FIFO, "r" and its slot or "p" and the publisher's number, in the topic's directory. */
#define SHMD_FIFO_NAME_BYTES 12
void shmd_fifo_name(char name[SHMD_FIFO_NAME_BYTES], enum shmd_sleepers who, uint32_t number);

/* --- append.c: publishing -------------------------------------------------------------------------------------------- */

struct shmd_appender {
    const struct shmd_log *log;
    uint32_t publisher;   /* what records say */
    uint32_t fifo;        /* the number in its FIFO's name: another one, once it was reopened */
    struct shmd_bell bell; /* of the readers */
    bool scanned;         /* slowest and joins hold what a scan found */
    uint64_t slowest;     /* no tethered cursor is below this, as long as joins does not change */
    uint64_t joins;
    uint64_t wanted;      /* what the last append that found no room waits for the slowest cursor to pass */
    uint32_t sleeps;      /* FIFO topics: how often it went to sleep, */
    uint64_t mark;        /* its last mark among the waiters, */
    uint32_t place;       /* where that is, */
    bool unheard;         /* and whether there was no place left */
};

void shmd_appender_init(struct shmd_appender *a, const struct shmd_log *log, uint32_t publisher, struct shmd_bell bell);
/* Publish count records: all or nothing, one commit, one bell. *seqp: the last one's. SHMD_FULL, SHMD_BUSY, -EMSGSIZE,
 * -EUCLEAN. */
int shmd_append(struct shmd_appender *a, const struct shmd_bytes *payloads, size_t count, uint64_t *seqp);
/* About to sleep for room: SHMD_OK sleep; SHMD_AGAIN there may be room now. a->unheard: so many sleep that no bell will
 * ring for this one, and it must look again by itself. */
int shmd_appender_arm(struct shmd_appender *a);
/* Exclusive topics: room for one record of size bytes; *payloadp is where to write it. SHMD_FULL, -EMSGSIZE, -EUCLEAN. */
int shmd_reserve(struct shmd_appender *a, size_t size, uint8_t **payloadp);
int shmd_commit_reserved(struct shmd_appender *a, size_t size, uint64_t *seqp);

/* --- reader.c: subscribing ------------------------------------------------------------------------------------------- */

struct shmd_reader {
    const struct shmd_log *log;
    struct shmd_slot *slot;
    uint64_t word;        /* what this reader last stored in its slot; another value there means: no longer its own */
    uint32_t incarnation;
    uint32_t sleeps;      /* FIFO topics: how often it went to sleep */
    struct shmd_bell bell; /* of publishers that wait for room */
    bool wants_tether;    /* asked to hold publishers back, and the topic lets it */
    bool tethered;        /* does so now; false too after somebody took the tether away */
    bool lapped;          /* the next record may be any number of sequence numbers ahead */
    uint64_t position;    /* of the next record to hand out */
    uint64_t next_seq;    /* its sequence number; 0: whatever comes */
    uint64_t skip_below;  /* records before this sequence number are passed over */
    uint64_t lost_total;
    uint8_t *copy;        /* private copy of a stretch of the ring */
    size_t copy_bytes;
    uint64_t copy_at, copy_end, copy_tail; /* of the stretch: next byte, end, and the tail it was checked against */
};

enum shmd_seek { SHMD_SEEK_SEQ, SHMD_SEEK_TIME };

/* -ESTALE if the slot's incarnation is another. tethered has an effect on `wait` topics only. */
int shmd_reader_init(struct shmd_reader *r, const struct shmd_log *log, uint32_t slot, uint32_t incarnation,
                     bool tethered, struct shmd_bell bell);
void shmd_reader_free(struct shmd_reader *r);
void shmd_seek_start(struct shmd_reader *r);
/* Where another reader of this log stood (in this process, before): its position and next sequence number. What was
 * discarded meanwhile counts as lost. */
void shmd_seek_position(struct shmd_reader *r, uint64_t position, uint64_t next_seq);
int shmd_seek_new(struct shmd_reader *r);
int shmd_seek_last(struct shmd_reader *r);
int shmd_seek_all(struct shmd_reader *r);
/* From *fromp on (0: the start) look for the first record with at least this seq or time. SHMD_AGAIN after `steps`. */
int shmd_seek_scan(struct shmd_reader *r, enum shmd_seek by, uint64_t value, uint64_t steps, uint64_t *fromp);
/* Store the cursor in the ctl, and the tether, if it is wanted (again, too, after it was taken away). SHMD_AGAIN:
 * publishers went past it meanwhile; seek again, or go on untethered from what is left. -ESTALE. */
int shmd_join(struct shmd_reader *r);
/* begin: copy a stretch; next: one record of it after the other, until SHMD_EMPTY; end: store the cursor, ring. */
int shmd_read_begin(struct shmd_reader *r, size_t bytes_max);
int shmd_read_next(struct shmd_reader *r, struct shmd_view *viewp);
void shmd_read_end(struct shmd_reader *r);
/* begin and next, until there is a first record; then go on with next, and end. SHMD_EMPTY, and nothing begun, once it has
 * come to the tail that it found: records to be skipped that come meanwhile are for the next call. */
int shmd_read_first(struct shmd_reader *r, size_t bytes_max, struct shmd_view *viewp);
bool shmd_available(const struct shmd_reader *r);
/* About to sleep: SHMD_OK sleep; SHMD_AGAIN something came meanwhile. */
int shmd_reader_arm(struct shmd_reader *r);
void shmd_leave(struct shmd_reader *r);

/* --- cell.c: one value, stored whole ---------------------------------------------------------------------------------- */

/* Process-private view of a cell (size, bytes and place: see layout.h and shmd_cell_bytes). */
struct shmd_cell {
    struct shmd_cell_header *header;
    shmd_a64 *buffers;
    size_t size;
};

/* The cell for values of `size` bytes at `memory`, of which `bytes` are there. Nothing is read or written. -EINVAL: such a
 * cell cannot be there. */
int shmd_cell_open(struct shmd_cell *cellp, void *memory, size_t bytes, size_t size);
/* Store `size` bytes. SHMD_BUSY: another writer is at it; try again, after giving others a turn. -EUCLEAN: here lies
 * something else, or a cell of another size; it is unchanged. Needs a writable mapping. */
int shmd_cell_store(const struct shmd_cell *cell, const void *value);
/* Copy the newest value out; *versionp counts the stores until then. SHMD_EMPTY: nobody stored yet; SHMD_AGAIN:
 * overtaken time after time (*valuep is then anything); -EUCLEAN. A read-only mapping is enough. */
int shmd_cell_load(const struct shmd_cell *cell, void *value, uint64_t *versionp);
/* How many values were stored so far: changes with every store. */
uint64_t shmd_cell_version(const struct shmd_cell *cell);
/* The thread that is storing right now, or that died without the kernel's notice while it was; 0: none. */
uint32_t shmd_cell_writer(const struct shmd_cell *cell);

SHMD_API_END

#endif
