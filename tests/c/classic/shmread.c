/* The classic recipe, the other end: shmread PATH ID prints what lies in the segment. */
#include <stdio.h>
#include <sys/ipc.h>
#include <sys/shm.h>

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    int id = shmget(ftok(argv[1], argv[2][0]), 0, 0);
    if (id == -1) {
        perror("shmget");
        return 1;
    }
    const char *memory = shmat(id, NULL, SHM_RDONLY);
    if (memory == (void *)-1) {
        perror("shmat");
        return 1;
    }
    printf("%s\n", memory);
    return shmdt(memory) == 0 ? 0 : 1;
}
