/*
 * A C client's connection to the daemon: connect, ask, hear what it says unasked, notice that it went away. Internal to the
 * library, and so is the struct that holds a client together.
 */
#ifndef SHMD_CONTROL_H
#define SHMD_CONTROL_H

#include <sys/un.h>

#include "bystander.h"
#include "messages.h"

#define SHMD_BELLS 2u   /* of a grant: record bell and space bell, or notify bell and lock bell */
#define SHMD_FDS_MAX 3u /* and the file of a segment that is one */
#define SHMD_REQUEST_TIMEOUT_MS 30000 /* a daemon that does not answer for so long is stuck */
#define SHMD_CONNECT_TIMEOUT_MS 5000
#define SHMD_RESUME_TIMEOUT_MS 1000 /* within shmd_next() and shmd_publish(), for which records may wait meanwhile */
#define SHMD_LOOK_NS 50000000ll     /* who never sleeps looks so often whether the daemon said something, or went */
#define SHMD_PAUSE_MIN_NS 10000000ll /* between two attempts to reconnect: doubles, and is drawn at random up to it */
#define SHMD_PAUSE_MAX_NS 1000000000ll
#define SHMD_SETTLE_NS 2000000000ll /* after its own return a client still looks by itself: others may be on their way */

struct shmd_seat;

struct shmd_client {
    struct sockaddr_un address;
    char name[SHMD_CLIENT_NAME_BYTES_MAX + 1];
    int fd; /* -1: no daemon */
    uint64_t last_id;
    struct shmd_roster roster; /* attached also for the next daemon's sake: it goes with the last process that has it */
    uint64_t number; /* what the daemon calls us; 0 before the first hello */
    bool resumed;    /* the daemon that is there now knew us */
    bool reconnects;
    int64_t looked_ns, retry_ns, pause_ns, adrift_until_ns;
    uint64_t watch, watch_found; /* a watch of ours, and that it announced something */
    struct shmd_seat *seats;
    char error_code[48];
    char error_text[1100];
    uint8_t packet[SHMD_MESSAGE_BYTES_MAX];
};

int64_t shmd_now_ns(void);
/* The moment so many milliseconds from now; INT64_MAX for -1. */
int64_t shmd_deadline_ns(int timeout_ms);
/* Milliseconds until then, rounded up, for poll(); -1 for INT64_MAX. */
int shmd_until_ms(int64_t deadline_ns);

/* Remember what went wrong, and give `result` back. */
int shmd_fail(struct shmd_client *client, int result, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The socket to connect to, into client->address. */
int shmd_control_find(struct shmd_client *client, const char *path);
/* -ENOENT: nobody is at client->address, and what to do about that. */
int shmd_control_absent(struct shmd_client *client, const char *why);
/* Connect and say hello; resumes if client->number is not 0. */
int shmd_control_connect(struct shmd_client *client, int64_t deadline_ns);
/* Detach the roster, for good. */
void shmd_control_forget_roster(struct shmd_client *client);
/* Hang up, or take note that the daemon did. */
void shmd_control_lost(struct shmd_client *client);
/* Begin a request under a new id. */
void shmd_control_begin(struct shmd_client *client, struct shmd_request *r, const char *type, uint32_t fields);
/* The same for one about a topic, with so many fields beside that. */
void shmd_control_begin_for(struct shmd_client *client, struct shmd_request *r, const char *type, const char *topic,
                            uint32_t further_fields);
/* Send it and do not wait for the answer. */
int shmd_control_post(struct shmd_client *client, const struct shmd_request *r);
/* Send it and wait for its reply, of the type `want`. `fds` gets the descriptors that come with such a reply, and is theirs
 * to close. What the daemon opened for a request that was given up is closed again. */
int shmd_control_ask(struct shmd_client *client, const struct shmd_request *r, enum shmd_reply_type want,
                     int64_t deadline_ns, struct shmd_reply *reply, int *fds);
/* The same for requests that are answered with `done`. */
int shmd_control_do(struct shmd_client *client, const struct shmd_request *r, int64_t deadline_ns);
/* Give back what this handle stands for, and do not wait. */
void shmd_control_close(struct shmd_client *client, uint64_t handle);
/* Hear what the daemon says unasked, up to `deadline_ns` (0: do not wait); 0 after each message, -ETIMEDOUT, -ENOTCONN, -EINTR. */
int shmd_control_hear(struct shmd_client *client, int64_t deadline_ns);
/* The same for all that has come, without waiting. */
void shmd_control_dispatch(struct shmd_client *client);

#endif
