/*
 * Two processes with an mmap'ed file: this one writes a note into it.
 *
 *     mmap_write FILE TEXT
 *
 * Whoever has the file mapped sees the note as soon as it is stored; after msync() it also survives a crash of the machine.
 * The note lies in a cell, so that a reader, or a kill in the middle, finds the old note or the new one, whole.
 */
#include "mapped.h"

int main(int argc, char **argv) {
    struct note note = {{0}};
    struct shmd_cell cell;
    if (argc != 3 || strlen(argv[2]) >= sizeof note.text) {
        fprintf(stderr, "usage: mmap_write FILE TEXT (of at most %zu bytes)\n", sizeof note.text - 1);
        return 2;
    }
    strcpy(note.text, argv[2]);
    void *memory = map_file(argv[1], 1, &cell);
    int result = shmd_cell_store(&cell, &note);
    if (result != SHMD_OK) {
        fprintf(stderr, "mmap_write: %s\n", result == SHMD_BUSY ? "there is another writer" : strerror(-result));
        return 1;
    }
    if (msync(memory, FILE_BYTES, MS_SYNC) != 0)
        die("msync");
    return munmap(memory, FILE_BYTES) == 0 ? 0 : 1;
}
