/*
 * The memory-order vocabulary of shmd: every access to a word that another process may write goes through one of these.
 *
 *   acquire   what the partner wrote before its release is visible after this load
 *   release   all that this thread wrote before is visible to whoever acquires this store
 *   seq       one total order over all seq accesses: for "write mine, then read yours" (Dekker), where acquire and
 *             release are not enough
 *   relaxed   no order, no tearing: counters, and payload words whose order a fence or another word establishes
 *
 * Each use of anything but relaxed names its partner in a comment that starts with SYNC.
 */
#ifndef SHMD_ATOMICS_H
#define SHMD_ATOMICS_H

#include <stdatomic.h>
#include <stdint.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "shmd's layout is little-endian"
#endif
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free to be shared between processes");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "32-bit atomics must be lock-free to be shared between processes");

typedef _Atomic uint32_t shmd_a32;
typedef _Atomic uint64_t shmd_a64;

#define load_relaxed(p) atomic_load_explicit((p), memory_order_relaxed)
#define load_acquire(p) atomic_load_explicit((p), memory_order_acquire)
#define load_seq(p) atomic_load_explicit((p), memory_order_seq_cst)
#define store_relaxed(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define store_release(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define store_seq(p, v) atomic_store_explicit((p), (v), memory_order_seq_cst)
#define add_seq(p, v) atomic_fetch_add_explicit((p), (v), memory_order_seq_cst)
#define cas_seq(p, expectedp, v) \
    atomic_compare_exchange_strong_explicit((p), (expectedp), (v), memory_order_seq_cst, memory_order_relaxed)
#define cas_acquire(p, expectedp, v) \
    atomic_compare_exchange_strong_explicit((p), (expectedp), (v), memory_order_acquire, memory_order_relaxed)
#define fence_acquire() atomic_thread_fence(memory_order_acquire)
#define fence_release() atomic_thread_fence(memory_order_release)
/* Keeps the compiler, not the processor, from moving accesses: between this thread and the kernel acting on its death. */
#define fence_self() atomic_signal_fence(memory_order_seq_cst)

static inline void cpu_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
