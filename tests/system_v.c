/*
 * Makes one of the calls of docs/system-v.md and prints what came of it: the number of the errno, or 0, or a signal.
 *
 *   system_v N    row N of rows.h, which test_system_v.py writes from the tables: a condition and a call
 *
 * Each call is made in a child, which may be changed (user, limits) or killed by it; its parent removes what was set up.
 * In an IPC namespace of its own wherever that is allowed. Ends with UNABLE where a condition cannot be brought about.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { UNABLE = 77, STRANGER = 54321 };

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

/* What the calls of the tables may use. */
static key_t key, free_key;
static int id, sem, gone, gone_sem;
static char *at;
static size_t page;
static int file, log_only, end_in, end_out, broken;
static struct shmid_ds ds;
static struct semid_ds sem_ds;
static const struct timespec soon = {0, 1000000};

static int alone; /* in an IPC namespace of our own */

struct row {
    const char *condition;
    long (*call)(void);
};

static void check(long result, const char *doing) {
    if (result < 0) {
        perror(doing);
        exit(1);
    }
}

static void require(long result, const char *doing) {
    if (result < 0) {
        perror(doing);
        exit(UNABLE);
    }
}

static unsigned mode_of(int shmid) {
    check(shmctl(shmid, IPC_STAT, &ds), "IPC_STAT");
    return ds.shm_perm.mode;
}

static unsigned long attachments_of(int shmid) {
    check(shmctl(shmid, IPC_STAT, &ds), "IPC_STAT");
    return ds.shm_nattch;
}

static int sealed_file(void) {
    int fd = memfd_create("sealed", MFD_ALLOW_SEALING);
    check(ftruncate(fd, (off_t)page), "ftruncate");
    check(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), "F_ADD_SEALS");
    return fd;
}

#include "rows.h"

/* --- what there is before --- */

static void set_up(void) {
    page = (size_t)sysconf(_SC_PAGESIZE);
    srand((unsigned)getpid());
    do /* somebody else's, where the namespace is shared */
        key = rand() % INT_MAX + 1;
    while ((id = shmget(key, page, IPC_CREAT | IPC_EXCL | 0600)) < 0 && errno == EEXIST);
    check(id, "shmget");
    check(sem = semget(key, 1, IPC_CREAT | IPC_EXCL | 0600), "semget");
    check(semctl(sem, 0, SETVAL, (union semun){.val = 1}), "SETVAL");
    do
        free_key = rand() % INT_MAX + 1;
    while (shmget(free_key, 0, 0) >= 0 || semget(free_key, 0, 0) >= 0);
    check(gone = shmget(IPC_PRIVATE, 1, 0600), "shmget");
    check(shmctl(gone, IPC_RMID, NULL), "IPC_RMID");
    check(gone_sem = semget(IPC_PRIVATE, 1, 0600), "semget");
    check(semctl(gone_sem, 0, IPC_RMID), "IPC_RMID");
    at = shmat(id, NULL, 0);
    check((long)at, "shmat");

    int ends[2];
    check(mkfifo("fifo", 0600), "mkfifo");
    check(mkdir("directory", 0700), "mkdir");
    check(symlink("loop", "loop"), "symlink");
    check(file = open("file", O_RDWR | O_CREAT, 0600), "open");
    check(ftruncate(file, (off_t)page), "ftruncate");
    check(log_only = open("file", O_WRONLY), "open");
    check(pipe(ends), "pipe");
    close(ends[0]);
    broken = ends[1];
    check(pipe2(ends, O_NONBLOCK), "pipe2");
    end_out = ends[0], end_in = ends[1];
    signal(SIGPIPE, SIG_IGN);
}

static void tear_down(void) {
    shmctl(id, IPC_RMID, NULL);
    semctl(sem, 0, IPC_RMID);
}

/* --- conditions --- */

static void become(uid_t uid) {
    require(setgroups(0, NULL), "setgroups");
    require(setgid(uid), "setgid");
    require(setuid(uid), "setuid");
}

static void give_to(uid_t uid) {
    check(shmctl(id, IPC_STAT, &ds), "IPC_STAT");
    ds.shm_perm.uid = uid;
    require(shmctl(id, IPC_SET, &ds), "IPC_SET");
}

static void write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    require(fd, path);
    require(write(fd, text, strlen(text)), path);
    close(fd);
}

static char first_of(const char *path) {
    char first = '\0';
    int fd = open(path, O_RDONLY);
    require(read(fd, &first, 1), path);
    close(fd);
    return first;
}

static void limit_kernel(const char *name, const char *value) {
    char path[128];
    if (!alone) /* never the host's own limits */
        exit(UNABLE);
    snprintf(path, sizeof path, "/proc/sys/kernel/%s", name);
    write_text(path, value);
}

static void limit_process(const char *name, rlim_t value) {
    static const struct {
        const char *name;
        int resource;
    } known[] = {{"AS", RLIMIT_AS}, {"MEMLOCK", RLIMIT_MEMLOCK}, {"NOFILE", RLIMIT_NOFILE}};
    struct rlimit limit = {value, value};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0) {
            require(setrlimit(known[i].resource, &limit), name);
            return;
        }
    exit(1);
}

static void mount_there(unsigned long flags, const char *options) {
    require(unshare(CLONE_NEWNS), "unshare");
    require(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "mount");
    require(mount("none", "directory", "tmpfs", 0, options), "mount");
    close(open("directory/file", O_WRONLY | O_CREAT, 0600));
    require(mount("none", "directory", NULL, MS_REMOUNT | flags, options), "remount");
}

static void interrupted(int number) {
    (void)number;
}

static void interrupt_often(int flags) {
    struct sigaction action = {.sa_handler = interrupted, .sa_flags = flags};
    struct itimerval often = {{0, 10000}, {0, 10000}};
    check(sigaction(SIGALRM, &action, NULL), "sigaction");
    check(setitimer(ITIMER_REAL, &often, NULL), "setitimer");
}

static void remove_when_waited_for(void) {
    check(semctl(sem, 0, SETVAL, (union semun){.val = 0}), "SETVAL");
    pid_t remover = fork();
    check(remover, "fork");
    if (remover == 0) {
        while (semctl(sem, 0, GETNCNT) == 0)
            sched_yield();
        _exit(semctl(sem, 0, IPC_RMID) < 0);
    }
}

static void bring_about(const char *condition) {
    char name[64], value[64];
    unsigned long number;
    if (*condition == '\0')
        return;
    if (strcmp(condition, "another user") == 0)
        become(STRANGER);
    else if (strcmp(condition, "its owner, without privilege") == 0)
        give_to(STRANGER), become(STRANGER);
    else if (strcmp(condition, "nobody holds it") == 0)
        check(shmdt(at), "shmdt");
    else if (strcmp(condition, "taken") == 0)
        check(semctl(sem, 0, SETVAL, (union semun){.val = 0}), "SETVAL");
    else if (strcmp(condition, "taken, a signal comes, SA_RESTART") == 0)
        bring_about("taken"), interrupt_often(SA_RESTART);
    else if (strcmp(condition, "a signal comes") == 0)
        interrupt_often(0);
    else if (strcmp(condition, "taken, another process removes it") == 0)
        remove_when_waited_for();
    else if (sscanf(condition, "another user, RLIMIT_%63s is %lu", name, &number) == 2)
        limit_process(name, number), become(STRANGER);
    else if (sscanf(condition, "its owner, RLIMIT_%63s is %lu", name, &number) == 2)
        limit_process(name, number), give_to(STRANGER), become(STRANGER);
    else if (strcmp(condition, "locked in memory") == 0)
        require(mlock(at, page), "mlock");
    else if (strcmp(condition, "full") == 0)
        while (write(end_in, at, page) > 0)
            ;
    else if (strcmp(condition, "a read-only file system") == 0)
        mount_there(MS_RDONLY, "nr_inodes=9");
    else if (strcmp(condition, "a file system without a free inode") == 0)
        mount_there(0, "nr_inodes=2");
    else if (strcmp(condition, "a file system mounted noexec") == 0)
        mount_there(MS_NOEXEC, "nr_inodes=9");
    else if (strcmp(condition, "alone") == 0)
        require(alone ? 0 : -1, condition);
    else if (strcmp(condition, "no huge pages, root") == 0)
        require(geteuid() == 0 ? 0 : -1, condition), bring_about("no huge pages");
    else if (strcmp(condition, "no huge pages") == 0)
        require(first_of("/proc/sys/vm/nr_hugepages") == '0' ? 0 : -1, condition);
    else if (strcmp(condition, "vm.overcommit_memory is not 1") == 0)
        require(first_of("/proc/sys/vm/overcommit_memory") != '1' ? 0 : -1, condition);
    else if (sscanf(condition, "kernel.%63s is %63[0-9 ]", name, value) == 2)
        limit_kernel(name, value);
    else if (sscanf(condition, "RLIMIT_%63s is %lu", name, &number) == 2)
        limit_process(name, number);
    else {
        fprintf(stderr, "nobody knows how to bring about: %s\n", condition);
        exit(1);
    }
}

int main(int argc, char **argv) {
    size_t number = argc == 2 ? (size_t)atol(argv[1]) : SIZE_MAX;
    if (number >= sizeof rows / sizeof *rows)
        return 1;
    alone = unshare(CLONE_NEWIPC) == 0;
    set_up();
    pid_t child = fork();
    check(child, "fork");
    if (child == 0) {
        bring_about(rows[number].condition);
        errno = 0;
        long result = rows[number].call();
        printf("%d\n", result == -1 ? errno : 0);
        exit(0);
    }
    int status;
    check(waitpid(child, &status, 0), "waitpid");
    tear_down();
    if (WIFSIGNALED(status)) {
        printf("SIG%s\n", sigabbrev_np(WTERMSIG(status)));
        return 0;
    }
    return WEXITSTATUS(status);
}
