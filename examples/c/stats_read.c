/*
 * The classic shmread: show the statistics that stats_write keeps, each time they have changed.
 *
 *     stats_read FILE [ACCEPTED]
 *
 * Ends once so many connections were accepted, or when it is interrupted. It takes no lock: it cannot hold up the writer,
 * nor be held up by one that is stopped or dead.
 */
#include <time.h>

#include <shmd/shmd.h>

#include "classic.h"
#include "stats.h"

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: stats_read FILE [ACCEPTED]\n");
        return 2;
    }
    unsigned long enough = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
    int id;
    struct stats stats = {0};
    struct shmd_cell cell;
    size_t bytes = shmd_cell_bytes(sizeof stats);
    uint64_t version, seen = 0;
    catch_signals();
    void *memory = attach_by_key(argv[1], 's', bytes, &id, NULL);
    if (shmd_cell_open(&cell, memory, bytes, sizeof stats) != SHMD_OK) {
        fprintf(stderr, "stats_read: a cell does not fit there\n");
        return 1;
    }
    while (!stopped && (enough == 0 || stats.accepted < enough)) {
        int result = shmd_cell_load(&cell, &stats, &version);
        if (result < 0) {
            fprintf(stderr, "stats_read: there is something else in this segment\n");
            return 1;
        }
        if (result == SHMD_OK && version != seen) {
            seen = version;
            printf("accepted %llu in %llu out %llu\n", (unsigned long long)stats.accepted,
                   (unsigned long long)stats.bytes_in, (unsigned long long)stats.bytes_out);
            fflush(stdout);
        } else {
            nanosleep(&pause, NULL); /* nobody tells us; nor could the writer, without knowing who reads */
        }
    }
    return shmdt(memory) == 0 ? 0 : 1;
}
