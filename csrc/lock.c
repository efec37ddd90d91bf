/*
 * The lock: a word in shared memory in the kernel's robust-futex format, on which nobody ever sleeps.
 *
 * While a thread is in the critical section, list_op_pending of its own robust_list_head (private memory, registered
 * with the kernel by libc) points at the word. When the thread dies in there, by kill -9, exit or exec, the kernel looks
 * at the word, finds the thread's TID in it, and sets FUTEX_OWNER_DIED; the next publisher takes the lock over. A word
 * that holds another thread's TID is left alone, so pointing early and late is harmless. No pointer lies in shared
 * memory, and no timeout ever frees a lock.
 *
 * libc uses the same field during its own robust-mutex operations, which never overlap ours within one thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shmd.h"

#define SPINS_MAX 128u /* a few microseconds: longer than any critical section whose owner is running */

static _Thread_local struct robust_list_head *robust_head;
static _Thread_local uint32_t own_tid;
static _Thread_local struct robust_list_head own_head; /* for a libc that registers none */
static pthread_once_t fork_handler_once = PTHREAD_ONCE_INIT;

/* A forked child's main thread has another TID; libc registers its list again, at the same address. */
static void forget_thread(void) {
    robust_head = NULL;
    own_tid = 0;
}

static void install_fork_handler(void) { (void)pthread_atfork(NULL, NULL, forget_thread); }

static void prepare_thread(void) {
    size_t length = 0;
    struct robust_list_head *head = NULL;
    pthread_once(&fork_handler_once, install_fork_handler);
    if (syscall(SYS_get_robust_list, 0, &head, &length) != 0 || head == NULL || length != sizeof *head) {
        own_head.list.next = &own_head.list;
        own_head.futex_offset = 0;
        own_head.list_op_pending = NULL;
        head = &own_head;
        (void)syscall(SYS_set_robust_list, head, sizeof *head);
    }
    own_tid = (uint32_t)syscall(SYS_gettid);
    robust_head = head;
}

int shmd_lock(shmd_a32 *word, bool *takenp) {
    if (robust_head == NULL)
        prepare_thread();
    *takenp = false;
    robust_head->list_op_pending = (struct robust_list *)(void *)((char *)word - robust_head->futex_offset);
    fence_self(); /* the kernel must know before the word can hold our TID */
    for (unsigned spin = 0; spin < SPINS_MAX; spin++) {
        uint32_t seen = load_relaxed(word);
        if (seen == 0 || (seen & FUTEX_OWNER_DIED) != 0) {
            /* SYNC: acquire pairs with the release in shmd_unlock, or with the kernel's store of FUTEX_OWNER_DIED */
            if (cas_acquire(word, &seen, own_tid)) {
                *takenp = seen != 0;
                return SHMD_OK;
            }
        }
        cpu_relax();
    }
    fence_self();
    robust_head->list_op_pending = NULL;
    return SHMD_BUSY;
}

bool shmd_lock_declare_dead(shmd_a32 *word, uint32_t tid) {
    uint32_t expected = tid;
    return tid != 0 && cas_acquire(word, &expected, FUTEX_OWNER_DIED); /* SYNC: stands in for the kernel's own mark */
}

void shmd_unlock(shmd_a32 *word) {
    store_release(word, 0); /* SYNC: pairs with the acquire in shmd_lock */
    fence_self(); /* the word must be free before the kernel is told to forget it */
    robust_head->list_op_pending = NULL;
}
