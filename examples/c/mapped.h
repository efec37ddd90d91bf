/* A file of one cell, mapped by mmap_write and mmap_read. */
#ifndef MAPPED_H
#define MAPPED_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <shmd/shmd.h>

struct note {
    char text[120];
};

#define FILE_BYTES 4096

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* Map the file, and see to it that it is long enough: touching a page beyond its end would be SIGBUS. */
static void *map_file(const char *path, int writable, struct shmd_cell *cell) {
    struct stat file;
    int fd = open(path, (writable ? O_RDWR | O_CREAT : O_RDONLY) | O_CLOEXEC, 0600);
    if (fd == -1)
        die(path);
    if (fstat(fd, &file) != 0 || (writable && file.st_size < FILE_BYTES && ftruncate(fd, FILE_BYTES) != 0))
        die(path);
    if (!writable && file.st_size < FILE_BYTES) {
        fprintf(stderr, "%s: it is too short to hold a note\n", path);
        exit(1);
    }
    void *memory = mmap(NULL, FILE_BYTES, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    close(fd); /* the mapping stays */
    if (shmd_cell_open(cell, memory, FILE_BYTES, sizeof(struct note)) != SHMD_OK) {
        fprintf(stderr, "%s: a cell does not fit\n", path);
        exit(1);
    }
    return memory;
}

#endif
