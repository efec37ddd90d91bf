/*
 * A dead subscriber holds publishers back until its tether is taken. That is the daemon's work; if it is away or stopped,
 * the one who waits does it, with the daemon's own proof of death. The roster says which process sits in the slot: its transient
 * segment, which every client has attached, or the lasting one, whose id stands in there.
 *
 * Proof of death is a pidfd that cannot be had because there is no such process, or one of a process that ended, or of one
 * with another start time, which only got the pid. Nothing else proves anything.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bystander.h"

/* docs/memory-layout.md: the roster. */
#define MAGIC "SHMDROS1"
#define MAJOR 2u
#define VERSION_AT 8u
#define INSTANCE_AT 16u
#define PID_NAMESPACE_AT 64u
#define TIME_NAMESPACE_AT 72u
#define LASTING_AT 96u
#define PARTICIPANTS_HIGH_AT 112u
#define PARTICIPANTS_AT 0xfb000u
#define PARTICIPANTS 16384u
#define ROW_BYTES 192u
#define IDENTITY_BYTES 32u /* magic, version, header_bytes, instance_id: the same in both segments */
#define STATE_MASK 0xffu
#define STATE_LIVE 1u
#define KIND_PUBLISHER 1u

struct row {
    uint64_t state, client, handle;
    uint8_t topic_id[16];
    uint32_t kind, slot, incarnation, publisher, tethered, uid, gid, pid;
    uint64_t start_time;
};
_Static_assert(offsetof(struct row, pid) == 68 && offsetof(struct row, start_time) == 72, "roster_participant");

static uint64_t word_at(const uint8_t *roster, size_t offset) {
    return load_relaxed((const shmd_a64 *)(const void *)(roster + offset));
}

bool shmd_is_roster(const uint8_t *memory, const uint8_t instance_id[16]) {
    uint32_t version;
    memcpy(&version, memory + VERSION_AT, sizeof version);
    return memcmp(memory, MAGIC, 8) == 0 && version >> 16 == MAJOR && memcmp(memory + INSTANCE_AT, instance_id, 16) == 0;
}

/* A copy of the row, whole; false if it is free, or changes under our eyes. */
static bool copy_row(const uint8_t *at, struct row *row) {
    const shmd_a64 *state = (const shmd_a64 *)(const void *)at;
    uint64_t before = load_acquire(state); /* SYNC: pairs with the daemon's release store that commits a row */
    if ((before & STATE_MASK) != STATE_LIVE)
        return false;
    memcpy(row, at, sizeof *row);
    fence_acquire(); /* SYNC: pairs with the same: a later row's bytes imply a later state */
    return load_relaxed(state) == before;
}

static bool find_row(const uint8_t *roster, const uint8_t topic_id[16], uint32_t slot, uint32_t incarnation,
                     struct row *row) {
    uint64_t used = word_at(roster, PARTICIPANTS_HIGH_AT);
    for (uint64_t i = 0; i < used && i < PARTICIPANTS; i++)
        if (copy_row(roster + PARTICIPANTS_AT + i * ROW_BYTES, row) && row->kind != KIND_PUBLISHER &&
            row->slot == slot && row->incarnation == incarnation && memcmp(row->topic_id, topic_id, 16) == 0)
            return true;
    return false;
}

/* The same in the lasting segment, if what has its id is that, of the same creator. */
static bool find_lasting(const struct shmd_roster *roster, const uint8_t topic_id[16], uint32_t slot, uint32_t incarnation,
                         struct row *row) {
    uint64_t id = word_at(roster->memory, LASTING_AT) - 1; /* 0, which stands for none, becomes no id */
    struct shmid_ds stat;
    if (id > INT32_MAX)
        return false;
    const uint8_t *lasting = shmat((int)id, NULL, SHM_RDONLY);
    if (lasting == (void *)-1)
        return false;
    bool found = shmctl((int)id, IPC_STAT, &stat) == 0 && stat.shm_segsz == SHMD_ROSTER_BYTES &&
                 stat.shm_perm.cuid == roster->creator &&
                 memcmp(lasting, roster->memory, IDENTITY_BYTES) == 0 &&
                 find_row(lasting, topic_id, slot, incarnation, row);
    (void)shmdt(lasting);
    return found;
}

static bool is_namespace(const char *path, uint64_t inode) {
    struct stat there;
    return stat(path, &there) == 0 && (uint64_t)there.st_ino == inode;
}

/* Field 22 of /proc/PID/stat; 0 if it cannot be told. The name, which may hold anything, ends at the last bracket. */
static uint64_t start_time_of(uint32_t pid) {
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    size_t size = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[size] = 0;
    char *at = strrchr(text, ')');
    for (int field = 2; at != NULL && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at != NULL ? strtoull(at + 1, NULL, 10) : 0;
}

static bool is_dead(uint32_t pid, uint64_t start_time) {
    if (pid == 0 || pid > INT32_MAX) /* of another namespace */
        return false;
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return errno == ESRCH;
    struct pollfd ended = {.fd = fd, .events = POLLIN};
    bool dead = poll(&ended, 1, 0) > 0;
    uint64_t now_there = dead ? 0 : start_time_of(pid);
    close(fd);
    return dead || (start_time != 0 && now_there != 0 && now_there != start_time);
}

bool shmd_free_dead(const struct shmd_roster *roster, const struct shmd_log *log, const uint8_t topic_id[16]) {
    uint32_t slot, incarnation;
    struct row row;
    if (roster->memory == NULL || shmd_slowest_slot(log, &slot, &incarnation) != SHMD_OK)
        return false;
    if (!is_namespace("/proc/self/ns/pid", word_at(roster->memory, PID_NAMESPACE_AT)) ||
        !is_namespace("/proc/self/ns/time", word_at(roster->memory, TIME_NAMESPACE_AT)))
        return false;
    if (!find_row(roster->memory, topic_id, slot, incarnation, &row) &&
        !find_lasting(roster, topic_id, slot, incarnation, &row))
        return false;
    return is_dead(row.pid, row.start_time) && shmd_slot_untether(log, slot, incarnation);
}
