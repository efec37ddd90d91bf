/*
 * The C client: its connection, and requests about topics. publish.c, subscribe.c and rawsegment.c have the rest of
 * client.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "seat.h"

#define APPEARANCE_PAUSE_MIN_MS 10 /* between two looks for a daemon that is awaited: doubles */
#define APPEARANCE_PAUSE_MAX_MS 100

/* --- the connection --- */

static int make_client(const char *name, struct shmd_client **clientp) {
    struct shmd_client *client = *clientp = calloc(1, sizeof *client);
    if (client == NULL)
        return -ENOMEM;
    client->fd = -1;
    client->reconnects = true;
    client->pause_ns = SHMD_PAUSE_MIN_NS;
    if (name != NULL) {
        size_t size = strlen(name);
        if (size > SHMD_CLIENT_NAME_BYTES_MAX)
            return shmd_fail(client, -EINVAL, "a client's name has at most %u bytes", SHMD_CLIENT_NAME_BYTES_MAX);
        memcpy(client->name, name, size + 1);
    }
    return 0;
}

static int try_to_connect(struct shmd_client *client, const char *path, int64_t deadline_ns) {
    int64_t soonest_ns = shmd_deadline_ns(SHMD_CONNECT_TIMEOUT_MS);
    int result = shmd_control_find(client, path);
    return result != 0 ? result : shmd_control_connect(client, deadline_ns > soonest_ns ? deadline_ns : soonest_ns);
}

int shmd_connect(const char *path, const char *name, struct shmd_client **clientp) {
    return shmd_connect_wait(path, name, 0, clientp);
}

int shmd_connect_wait(const char *path, const char *name, int timeout_ms, struct shmd_client **clientp) {
    int64_t deadline_ns = shmd_deadline_ns(timeout_ms);
    int result = make_client(name, clientp);
    if (result != 0)
        return result;
    for (int pause_ms = APPEARANCE_PAUSE_MIN_MS;; pause_ms = 2 * pause_ms) {
        result = try_to_connect(*clientp, path, deadline_ns);
        bool absent = result == -ENOENT || result == -ENOTCONN; /* or it went away before it answered */
        int left_ms = shmd_until_ms(deadline_ns);
        if (!absent || left_ms == 0)
            return result;
        if (pause_ms > APPEARANCE_PAUSE_MAX_MS)
            pause_ms = APPEARANCE_PAUSE_MAX_MS;
        if (poll(NULL, 0, left_ms > 0 && left_ms < pause_ms ? left_ms : pause_ms) < 0)
            return shmd_fail(*clientp, -EINTR, "interrupted by a signal");
    }
}

void shmd_disconnect(struct shmd_client *client) {
    if (client == NULL)
        return;
    while (client->seats != NULL) { /* a seat is the first member of all three */
        if (client->seats->raw)
            shmd_close_segment((struct shmd_segment *)client->seats);
        else if (client->seats->publishes)
            shmd_close_publisher((struct shmd_publisher *)client->seats);
        else
            shmd_close_subscriber((struct shmd_subscriber *)client->seats);
    }
    if (client->fd >= 0) {
        struct shmd_request bye;
        shmd_control_begin(client, &bye, "bye", 0);
        (void)shmd_control_do(client, &bye, shmd_deadline_ns(SHMD_RESUME_TIMEOUT_MS));
        shmd_control_lost(client);
    }
    shmd_control_forget_roster(client);
    free(client);
}

bool shmd_connected(const struct shmd_client *client) { return client->fd >= 0; }

void shmd_set_reconnect(struct shmd_client *client, bool by_itself) { client->reconnects = by_itself; }

int shmd_client_resume(struct shmd_client *client) {
    shmd_control_dispatch(client); /* which notices that it is lost */
    if (client->fd >= 0)
        return SHMD_OK;
    if (client->number == 0)
        return shmd_fail(client, -EINVAL, "this client was never connected");
    return shmd_client_retake(client, shmd_deadline_ns(SHMD_CONNECT_TIMEOUT_MS));
}

const char *shmd_error_text(const struct shmd_client *client) {
    return client != NULL ? client->error_text : "out of memory";
}

const char *shmd_error_code(const struct shmd_client *client) { return client != NULL ? client->error_code : ""; }

const char *shmd_strerror(int result) {
    switch (result) {
    case SHMD_OK: return "done";
    case SHMD_FULL: return "the topic is full: publishers wait for its slowest subscriber";
    case SHMD_BUSY: return "another publisher is just writing";
    case SHMD_EMPTY: return "there is nothing to read yet";
    case SHMD_AGAIN: return "publishers are faster than this reader: try again";
    case -ENOENT: return "there is no such topic, or no daemon";
    case -EEXIST: return "the topic exists with other options";
    case -EBUSY: return "the topic is exclusive, and somebody else publishes to it";
    case -EDQUOT: return "a limit or quota of the daemon is reached";
    case -EIDRM: return "the topic was removed";
    case -EUCLEAN: return "shared memory holds what no publisher writes";
    case -EMSGSIZE: return "the record is larger than a quarter of the topic";
    case -ESTALE: return "somebody else has this place in the topic by now";
    case -ENOTCONN: return "there is no connection to the daemon";
    case -ETIMEDOUT: return "the daemon did not answer in time";
    case -EPROTO: return "the daemon broke the protocol";
    case -EPROTONOSUPPORT: return "the daemon speaks another version of the protocol";
    case -EXDEV: return "the daemon is in another IPC or PID namespace";
    case -EREMOTEIO: return "the daemon refused";
    default: return result < 0 ? strerror(-result) : "no result of this library";
    }
}

/* --- topics --- */

int shmd_declare(struct shmd_client *client, const char *topic, const struct shmd_topic_options *options,
                 struct shmd_topic_info *infop) {
    struct shmd_request r;
    struct shmd_reply reply;
    int fds[SHMD_FDS_MAX];
    shmd_control_begin_for(client, &r, "declare", topic, 1);
    shmd_request_options(&r, options);
    int result =
        shmd_control_ask(client, &r, SHMD_REPLY_TOPIC, shmd_deadline_ns(SHMD_REQUEST_TIMEOUT_MS), &reply, fds);
    if (result == 0 && infop != NULL)
        *infop = reply.topic;
    return result;
}

int shmd_remove_topic(struct shmd_client *client, const char *topic) {
    struct shmd_request r;
    shmd_control_begin_for(client, &r, "remove", topic, 0);
    return shmd_control_do(client, &r, shmd_deadline_ns(SHMD_REQUEST_TIMEOUT_MS));
}
