/* The lock, real processes: kill -9, exit, exec and a thread's end inside the critical section. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static shmd_a32 *word;
static bool taken;

static void die_by_exit(void) { _exit(0); }
static void die_by_signal(void) { raise(SIGKILL); }
static void die_by_exec(void) { execl("/bin/true", "true", (char *)NULL); }

static void next_owner_gets_the_lock_of_one_who_died(void (*die)(void)) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(shmd_lock(word, &taken) == SHMD_OK);
        die();
        _exit(99);
    }
    CHECK(waitpid(child, NULL, 0) == child);
    CHECK(shmd_lock(word, &taken) == SHMD_OK && taken);
    shmd_unlock(word);
    CHECK(shmd_lock(word, &taken) == SHMD_OK && !taken);
    shmd_unlock(word);
}

static void *lock_and_end(void *unused) {
    CHECK(shmd_lock(word, &taken) == SHMD_OK);
    return unused;
}

static void lock_of_a_living_owner_stays(void) {
    pid_t child = fork();
    if (child == 0) {
        CHECK(shmd_lock(word, &taken) == SHMD_OK);
        raise(SIGSTOP);
        shmd_unlock(word);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
    CHECK(shmd_lock(word, &taken) == SHMD_BUSY);
    CHECK(kill(child, SIGCONT) == 0 && waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 0);
    CHECK(shmd_lock(word, &taken) == SHMD_OK && !taken);
    shmd_unlock(word);
}

static void lock_of_a_death_that_the_kernel_missed_can_be_declared(void) {
    store_relaxed(word, 12345); /* as the OOM reaper would leave it */
    CHECK(shmd_lock(word, &taken) == SHMD_BUSY);
    CHECK(!shmd_lock_declare_dead(word, 12346) && shmd_lock(word, &taken) == SHMD_BUSY);
    CHECK(shmd_lock_declare_dead(word, 12345) && !shmd_lock_declare_dead(word, 0));
    CHECK(shmd_lock(word, &taken) == SHMD_OK && taken);
    shmd_unlock(word);
}

int main(void) {
    word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(word != MAP_FAILED);
    for (int i = 0; i < 20; i++) {
        next_owner_gets_the_lock_of_one_who_died(die_by_signal);
        next_owner_gets_the_lock_of_one_who_died(die_by_exit);
        next_owner_gets_the_lock_of_one_who_died(die_by_exec);
    }
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, lock_and_end, NULL) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(shmd_lock(word, &taken) == SHMD_OK && taken);
    shmd_unlock(word);
    lock_of_a_living_owner_stays();
    lock_of_a_death_that_the_kernel_missed_can_be_declared();
    puts("test_lock: ok");
    return 0;
}
