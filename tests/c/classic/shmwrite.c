/* The classic recipe: ftok, shmget, shmat, write, shmdt. shmwrite PATH ID SIZE TEXT prints the segment's id. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/shm.h>

int main(int argc, char **argv) {
    if (argc != 5)
        return 2;
    key_t key = ftok(argv[1], argv[2][0]);
    int id = shmget(key, (size_t)atol(argv[3]), IPC_CREAT | 0600);
    if (key == -1 || id == -1) {
        perror("shmget");
        return 1;
    }
    char *memory = shmat(id, NULL, 0);
    if (memory == (void *)-1) {
        perror("shmat");
        return 1;
    }
    strcpy(memory, argv[4]);
    printf("%d\n", id);
    return shmdt(memory) == 0 ? 0 : 1;
}
