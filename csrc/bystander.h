/* What a full publisher does about the dead while there is no daemon to do it. Internal to the library. */
#ifndef SHMD_BYSTANDER_H
#define SHMD_BYSTANDER_H

#include <sys/types.h>

#include "shmd.h"

/* The transient segment of a daemon's roster, attached and checked; memory may be NULL. */
struct shmd_roster {
    const uint8_t *memory;
    uid_t creator; /* whose word we take: the kernel tells it */
};

#define SHMD_ROSTER_BYTES 4702208u /* docs/memory-layout.md */

/* Whether these SHMD_ROSTER_BYTES bytes say that they are a roster of this instance, of a layout that is known here. */
bool shmd_is_roster(const uint8_t *memory, const uint8_t instance_id[16]);
/* Take the tether of the topic's slowest subscriber, if the roster says which process that
 * is, and that process is proven dead. Whether it was so. */
bool shmd_free_dead(const struct shmd_roster *roster, const struct shmd_log *log, const uint8_t topic_id[16]);

#endif
