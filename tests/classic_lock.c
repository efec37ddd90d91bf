/*
 * A program by the classic recipe, which knows nothing of shmd: a semaphore for a lock, made by whoever comes first.
 *
 *   classic_lock hold KEY             take it, say so, keep it until the input ends, give it back
 *   classic_lock count KEY SHMID N    N times: take it, add one to the first word of the segment, give it back
 *   classic_lock set KEY VALUE        set it, as careless programs do
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <unistd.h>

union semun {
    int val;
    struct semid_ds *buf;
};

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int open_lock(key_t key) { /* W. R. Stevens, UNIX Network Programming, vol. 2, 11.2 */
    union semun argument;
    int id = semget(key, 1, IPC_CREAT | IPC_EXCL | 0600);
    if (id >= 0) {
        argument.val = 0;
        if (semctl(id, 0, SETVAL, argument) < 0)
            fail("SETVAL");
        struct sembuf give = {0, 1, 0};
        if (semop(id, &give, 1) < 0)
            fail("semop");
        return id;
    }
    if (errno != EEXIST || (id = semget(key, 1, 0600)) < 0)
        fail("semget");
    struct semid_ds ds;
    argument.buf = &ds;
    for (int tries = 0; tries < 1000; tries++) { /* its maker has initialised it when it has been used once */
        if (semctl(id, 0, IPC_STAT, argument) < 0)
            fail("IPC_STAT");
        if (ds.sem_otime != 0)
            return id;
        usleep(1000);
    }
    fail("nobody initialises the semaphore");
    return -1;
}

static void change(int id, short by) {
    struct sembuf operation = {0, by, SEM_UNDO};
    if (semop(id, &operation, 1) < 0)
        fail("semop");
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    int id = open_lock((key_t)strtol(argv[2], NULL, 0));
    if (strcmp(argv[1], "hold") == 0) {
        change(id, -1);
        puts("held");
        fflush(stdout);
        while (getchar() != EOF)
            ;
        change(id, 1);
    } else if (strcmp(argv[1], "count") == 0 && argc == 5) {
        volatile uint64_t *counter = shmat(atoi(argv[3]), NULL, 0);
        if (counter == (void *)-1)
            fail("shmat");
        for (long left = atol(argv[4]); left > 0; left--) {
            change(id, -1);
            uint64_t seen = *counter;
            if (left % 64 == 0)
                usleep(0); /* so that others get to run in between, if they can */
            *counter = seen + 1;
            change(id, 1);
        }
    } else if (strcmp(argv[1], "set") == 0 && argc == 4) {
        union semun argument = {.val = atoi(argv[3])};
        if (semctl(id, 0, SETVAL, argument) < 0)
            fail("SETVAL");
    } else {
        return 2;
    }
    return 0;
}
