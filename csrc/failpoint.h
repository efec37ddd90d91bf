/*
 * Failpoints: named instructions at which a test build can be told to die or to stop. A production build has none of
 * this code. The list is the only place to add one; tests that loop over all of them find it by themselves.
 */
#ifndef SHMD_FAILPOINT_H
#define SHMD_FAILPOINT_H

#define SHMD_FAILPOINT_LIST(X) \
    X(append_locked)           \
    X(append_claimed)          \
    X(append_head_stored)      \
    X(append_half_copied)      \
    X(append_copied)           \
    X(append_committed)        \
    X(append_unlocked)         \
    X(append_rung)             \
    X(seek_checked)            \
    X(read_copied)             \
    X(read_cursor_stored)      \
    X(read_rung)               \
    X(join_cursor_stored)      \
    X(join_announced)          \
    X(reader_marked)           \
    X(reader_armed)            \
    X(space_marked)            \
    X(space_armed)             \
    X(fifo_written)            \
    X(fifo_cleared)            \
    X(cell_locked)             \
    X(cell_claimed)            \
    X(cell_begun)              \
    X(cell_half_copied)        \
    X(cell_copied)             \
    X(cell_stored)             \
    X(cell_unlocked)

#ifdef SHMD_FAILPOINTS
enum shmd_failpoint {
#define SHMD_FAILPOINT_ENUM(name) SHMD_FP_##name,
    SHMD_FAILPOINT_LIST(SHMD_FAILPOINT_ENUM)
#undef SHMD_FAILPOINT_ENUM
        SHMD_FP_COUNT
};
enum shmd_failpoint_action { SHMD_FP_OFF, SHMD_FP_KILL, SHMD_FP_STOP };
void shmd_failpoint_set(enum shmd_failpoint point, enum shmd_failpoint_action action, unsigned skip);
void shmd_failpoint_pass(enum shmd_failpoint point);
#define SHMD_FAILPOINT(name) shmd_failpoint_pass(SHMD_FP_##name)
#else
#define SHMD_FAILPOINT(name) ((void)0)
#endif

#endif
