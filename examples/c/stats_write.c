/*
 * The classic shmwrite: a server keeps statistics of its connections in a System V segment, for others to read.
 *
 *     stats_write FILE [COUNT]
 *
 * The segment's key is ftok(FILE, 's'). The textbook's version stores one counter after the other, and a reader that comes
 * in between sees connections without their bytes. Here they lie in a cell (shmd.h): the new values are written beside
 * the old ones, and one store turns them over. A reader gets all old values or all new ones, and so does the next writer
 * after a kill. The segment stays when this program ends; remove it with ipcrm.
 */
#include <shmd/shmd.h>

#include "classic.h"
#include "stats.h"

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: stats_write FILE [COUNT]\n");
        return 2;
    }
    unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    int id;
    struct stats stats;
    struct shmd_cell cell;
    uint64_t version;
    size_t bytes = shmd_cell_bytes(sizeof stats);
    catch_signals();
    void *memory = attach_by_key(argv[1], 's', bytes, &id, NULL);
    if (shmd_cell_open(&cell, memory, bytes, sizeof stats) != SHMD_OK) {
        fprintf(stderr, "stats_write: a cell does not fit there\n");
        return 1;
    }
    if (shmd_cell_load(&cell, &stats, &version) != SHMD_OK) /* go on where the last writer ended, also if it was killed */
        memset(&stats, 0, sizeof stats);
    for (unsigned long n = 0; (count == 0 || n < count) && !stopped; n++) {
        stats.accepted++; /* a real server would serve a connection here */
        stats.bytes_in += 512;
        stats.bytes_out += 2048;
        int result = shmd_cell_store(&cell, &stats);
        if (result != SHMD_OK) {
            fprintf(stderr, "stats_write: %s\n", result == SHMD_BUSY ? "there is another writer" : strerror(-result));
            return 1;
        }
    }
    printf("accepted %llu\n", (unsigned long long)stats.accepted);
    return shmdt(memory) == 0 ? 0 : 1;
}
