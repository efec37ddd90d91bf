/*
 * A pool of workers that share one FIFO: each byte in it wakes one worker, for one job.
 *
 *     worker FILE             work, until it is interrupted
 *     worker FILE post COUNT  have so many jobs done
 *     worker FILE show        how many were posted, taken and done
 *
 * The FIFO is FILE.jobs; it may also be one that shmd made, of a segment with notifier="fifo". The kernel gives each byte
 * to one reader, so no two workers get the same job, and no worker wakes in vain. The counters lie in the segment with
 * the key ftok(FILE, 'w'). A worker that is killed leaves the job in its hand undone: `show` tells, and the others work on.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include "classic.h"

struct pool {
    _Atomic uint64_t posted, taken, done;
};

static int open_jobs(const char *file) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s.jobs", file) >= (int)sizeof path) {
        errno = ENAMETOOLONG;
        die(file);
    }
    if (mkfifo(path, 0600) != 0 && errno != EEXIST)
        die(path);
    int fd = open(path, O_RDWR | O_CLOEXEC); /* for both ends: no end of file when all others have closed it */
    if (fd == -1)
        die(path);
    return fd;
}

static void work(struct pool *pool, int jobs) {
    char byte;
    uint64_t own = 0;
    while (!stopped) {
        if (read(jobs, &byte, 1) != 1) /* waits, for one byte: one job */
            break;
        uint64_t number = atomic_fetch_add(&pool->taken, 1) + 1;
        own++; /* a real worker would do job `number` here */
        (void)number;
        atomic_fetch_add(&pool->done, 1);
    }
    printf("did %" PRIu64 "\n", own);
}

static int post(struct pool *pool, int jobs, unsigned long count) {
    for (unsigned long n = 0; n < count && !stopped; n++) {
        atomic_fetch_add(&pool->posted, 1);
        if (write(jobs, "", 1) != 1) { /* waits while 65,536 jobs are waiting */
            atomic_fetch_sub(&pool->posted, 1);
            return stopped ? 0 : 1;
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2 || (argc == 4 && strcmp(argv[2], "post") != 0) || (argc == 3 && strcmp(argv[2], "show") != 0)) {
        fprintf(stderr, "usage: worker FILE [post COUNT | show]\n");
        return 2;
    }
    int id, result = 0;
    catch_signals();
    struct pool *pool = attach_by_key(argv[1], 'w', sizeof *pool, &id, NULL);
    int jobs = open_jobs(argv[1]);
    waits_on = jobs;
    if (argc == 2)
        work(pool, jobs);
    else if (argc == 4)
        result = post(pool, jobs, strtoul(argv[3], NULL, 10));
    else
        printf("posted %" PRIu64 " taken %" PRIu64 " done %" PRIu64 "\n", atomic_load(&pool->posted),
               atomic_load(&pool->taken), atomic_load(&pool->done));
    close(jobs);
    shmdt(pool);
    return result;
}
