/* Statistics of a server's connections, as stats_write and stats_read share them. */
#ifndef STATS_H
#define STATS_H

#include <stdint.h>

struct stats {
    uint64_t accepted;
    uint64_t bytes_in;  /* 512 for each connection, here */
    uint64_t bytes_out; /* 2048 for each */
};

#endif
