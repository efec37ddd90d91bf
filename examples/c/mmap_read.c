/*
 * Two processes with an mmap'ed file: this one prints the note that mmap_write wrote, and which it is.
 *
 *     mmap_read FILE
 *
 * It maps the file read-only, and copies the note out before it looks at it.
 */
#include "mapped.h"

int main(int argc, char **argv) {
    struct note note;
    struct shmd_cell cell;
    uint64_t version;
    if (argc != 2) {
        fprintf(stderr, "usage: mmap_read FILE\n");
        return 2;
    }
    void *memory = map_file(argv[1], 0, &cell);
    int result;
    do
        result = shmd_cell_load(&cell, &note, &version);
    while (result == SHMD_AGAIN); /* the writer wrote again and again meanwhile */
    if (result != SHMD_OK) {
        fprintf(stderr, "mmap_read: %s\n", result == SHMD_EMPTY ? "there is no note yet" : strerror(-result));
        return 1;
    }
    note.text[sizeof note.text - 1] = 0; /* whoever may write the file can write anything */
    printf("%llu %s\n", (unsigned long long)version, note.text);
    return munmap(memory, FILE_BYTES) == 0 ? 0 : 1;
}
