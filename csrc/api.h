/*
 * What all public headers of the C library share: its version, its results, and how its names are exported. Plain enough
 * for C++; so are client.h and wire.h. shmd.h, which describes shared memory in C11 atomics, is for C alone.
 */
#ifndef SHMD_API_H
#define SHMD_API_H

#include <stddef.h>
#include <stdint.h>

/* The release, as pyproject.toml has it; a test compares the two. The soname counts incompatible changes. */
#define SHMD_VERSION "0.1.0"

#ifdef __cplusplus
#define SHMD_EXTERN_BEGIN extern "C" {
#define SHMD_EXTERN_END }
#else
#define SHMD_EXTERN_BEGIN
#define SHMD_EXTERN_END
#endif

/* Around the declarations of a public header. libshmd.so hides everything else; the Python module hides these too. */
#ifdef SHMD_BUILDING_LIBRARY
#define SHMD_API_BEGIN _Pragma("GCC visibility push(default)") SHMD_EXTERN_BEGIN
#define SHMD_API_END SHMD_EXTERN_END _Pragma("GCC visibility pop")
#else
#define SHMD_API_BEGIN SHMD_EXTERN_BEGIN
#define SHMD_API_END SHMD_EXTERN_END
#endif

enum shmd_result {
    SHMD_OK = 0,
    SHMD_FULL = 1,  /* no room on a `wait` topic */
    SHMD_BUSY = 2,  /* another publisher is in the critical section */
    SHMD_EMPTY = 3, /* nothing new */
    SHMD_AGAIN = 4, /* overtaken, or the step budget is used up: call again, after giving others a turn */
};

struct shmd_bytes {
    const uint8_t *data;
    size_t size;
};

/* A record outside shared memory: in a private copy, checked. */
struct shmd_view {
    const uint8_t *payload;
    uint32_t length;
    uint32_t publisher;
    uint64_t seq;
    uint64_t time_ns;
    uint64_t lost; /* records missed right before this one */
};

#endif
