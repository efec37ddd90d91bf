#include "failpoint.h"

#ifdef SHMD_FAILPOINTS

#include <signal.h>

static struct {
    enum shmd_failpoint_action action;
    unsigned skip;
} points[SHMD_FP_COUNT];

void shmd_failpoint_set(enum shmd_failpoint point, enum shmd_failpoint_action action, unsigned skip) {
    points[point].action = action;
    points[point].skip = skip;
}

void shmd_failpoint_pass(enum shmd_failpoint point) {
    if (points[point].action == SHMD_FP_OFF)
        return;
    if (points[point].skip > 0) {
        points[point].skip--;
        return;
    }
    int signal = points[point].action == SHMD_FP_KILL ? SIGKILL : SIGSTOP;
    points[point].action = SHMD_FP_OFF; /* once: who is continued goes on */
    raise(signal);
}

#else

typedef int shmd_failpoint_unused; /* ISO C wants a declaration in every file */

#endif
