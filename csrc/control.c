/*
 * Packets to and from the daemon, over SOCK_SEQPACKET: one message each, its descriptors beside it. A request waits for its
 * own reply; what comes before it is an event, or the late reply to a request that was given up. Whatever breaks the
 * protocol ends the connection, never the program; records go on flowing without it.
 *
 * Every descriptor that arrives is either handed to who asked for it, or closed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "control.h"
#include "seat.h"

#define CONNECT_RETRY_MS 10    /* nothing tells when a full backlog has room again */
#define PACKETS_PER_DISPATCH 64u

int64_t shmd_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t shmd_deadline_ns(int timeout_ms) {
    return timeout_ms < 0 ? INT64_MAX : shmd_now_ns() + (int64_t)timeout_ms * 1000000;
}

int shmd_until_ms(int64_t deadline_ns) {
    if (deadline_ns == INT64_MAX)
        return -1;
    int64_t ms = (deadline_ns - shmd_now_ns() + 999999) / 1000000;
    return ms < 0 ? 0 : ms > INT_MAX ? INT_MAX : (int)ms;
}

int shmd_fail(struct shmd_client *client, int result, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(client->error_text, sizeof client->error_text, format, arguments);
    va_end(arguments);
    client->error_code[0] = 0;
    return result;
}

static int refused(struct shmd_client *client, const struct shmd_reply *reply) {
    const char *hint = reply->hint;
    int result = shmd_fail(client, -shmd_code_errno(reply->code), "%s%s%s%s", reply->message, *hint ? " (" : "", hint,
                           *hint ? ")" : "");
    memcpy(client->error_code, reply->code, sizeof client->error_code);
    return result;
}

/* --- packets --- */

void shmd_control_lost(struct shmd_client *client) {
    if (client->fd < 0)
        return;
    close(client->fd);
    client->fd = -1;
    client->retry_ns = shmd_now_ns() + SHMD_PAUSE_MIN_NS;
}

static int lost(struct shmd_client *client, int result, const char *why) {
    shmd_control_lost(client);
    return shmd_fail(client, result, "the connection to the daemon ended: %s", why);
}

static int send_packet(struct shmd_client *client, const struct shmd_request *r, int64_t deadline_ns) {
    if (client->fd < 0)
        return shmd_fail(client, -ENOTCONN, "there is no connection to the daemon at %s", client->address.sun_path);
    if (!shmd_packed(&r->packer))
        return shmd_fail(client, -EINVAL, "a name in this request is too long");
    for (;;) {
        if (send(client->fd, r->bytes, r->packer.size, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
            return 0;
        if (errno == EPIPE || errno == ECONNRESET)
            return 0; /* it hung up, but its last words may be there, and say why: the end is where reading ends */
        if (errno != EAGAIN && errno != EINTR)
            return lost(client, -ENOTCONN, strerror(errno));
        struct pollfd writable = {.fd = client->fd, .events = POLLOUT};
        int ready = errno == EINTR ? 1 : poll(&writable, 1, shmd_until_ms(deadline_ns));
        if (ready < 0)
            return shmd_fail(client, -errno, "interrupted");
        if (ready == 0)
            return shmd_fail(client, -ETIMEDOUT, "the daemon takes no requests");
    }
}

static void close_all(int *fds, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        close(fds[i]);
}

/* The descriptors beside a packet; how many. More than SHMD_FDS_MAX cannot come: there is no room for them. */
static unsigned take_fds(struct msghdr *header, int *fds) {
    unsigned count = 0;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part != NULL; part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t bytes = part->cmsg_len - CMSG_LEN(0);
        for (size_t at = 0; at + sizeof(int) <= bytes; at += sizeof(int)) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + at, sizeof fd);
            if (count < SHMD_FDS_MAX)
                fds[count++] = fd;
            else
                close(fd);
        }
    }
    return count;
}

/* One packet, if there is one: 0, -EAGAIN, -ENOTCONN. `fds` get *countp descriptors. */
static int receive_packet(struct shmd_client *client, struct shmd_reply *reply, int *fds, unsigned *countp) {
    union { /* aligned as the kernel wants it */
        struct cmsghdr header;
        uint8_t bytes[CMSG_SPACE(SHMD_FDS_MAX * sizeof(int))];
    } control;
    struct iovec packet = {client->packet, sizeof client->packet};
    struct msghdr header = {
        .msg_iov = &packet, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t size;
    do
        size = recvmsg(client->fd, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    while (size < 0 && (errno == EINTR || errno == ECONNRESET)); /* a reset comes once, before the last words */
    *countp = 0;
    if (size < 0)
        return errno == EAGAIN ? -EAGAIN : lost(client, -ENOTCONN, strerror(errno));
    *countp = take_fds(&header, fds);
    const char *wrong = NULL;
    if (size == 0)
        wrong = "it hung up";
    else if (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
        wrong = "it sent more than fits, or descriptors that this process may not open";
    else if (shmd_reply_decode(client->packet, (size_t)size, reply) != 0)
        wrong = "it sent what is no message";
    else if (*countp != reply->fds)
        wrong = "it sent another number of descriptors than its message says";
    if (wrong == NULL)
        return 0;
    close_all(fds, *countp);
    return lost(client, size == 0 ? -ENOTCONN : -EPROTO, wrong);
}

static int wait_readable(struct shmd_client *client, int64_t deadline_ns) {
    struct pollfd readable = {.fd = client->fd, .events = POLLIN};
    int ready = poll(&readable, 1, shmd_until_ms(deadline_ns));
    if (ready > 0)
        return 0;
    return ready == 0 ? -ETIMEDOUT : -errno;
}

/* The next packet, for which it waits. */
static int receive(struct shmd_client *client, int64_t deadline_ns, struct shmd_reply *reply, int *fds,
                   unsigned *countp) {
    for (;;) {
        if (client->fd < 0)
            return -ENOTCONN;
        int result = receive_packet(client, reply, fds, countp);
        if (result != -EAGAIN)
            return result;
        if (deadline_ns == 0)
            return -ETIMEDOUT;
        result = wait_readable(client, deadline_ns);
        if (result != 0)
            return result;
    }
}

static void heed(struct shmd_client *client, const struct shmd_reply *reply) {
    if (reply->type == SHMD_EVENT_TOPIC_GONE || reply->type == SHMD_EVENT_SEGMENT_GONE)
        shmd_seats_topic_gone(client, reply->topic_id);
    else if (reply->type == SHMD_EVENT_UNTETHERED)
        shmd_seats_untethered(client, reply->handle);
    else if (reply->type == SHMD_EVENT_TOPIC_ADDED && reply->watch == client->watch)
        client->watch_found = client->watch;
}

int shmd_control_hear(struct shmd_client *client, int64_t deadline_ns) {
    struct shmd_reply reply;
    int fds[SHMD_FDS_MAX];
    unsigned count;
    int result = receive(client, deadline_ns, &reply, fds, &count);
    if (result != 0)
        return result;
    close_all(fds, count); /* of a grant that nobody waits for any more */
    heed(client, &reply);
    return 0;
}

void shmd_control_dispatch(struct shmd_client *client) {
    for (unsigned i = 0; i < PACKETS_PER_DISPATCH && client->fd >= 0; i++)
        if (shmd_control_hear(client, 0) != 0)
            return;
}

/* --- requests --- */

void shmd_control_begin(struct shmd_client *client, struct shmd_request *r, const char *type, uint32_t fields) {
    shmd_request_begin(r, type, ++client->last_id, fields);
}

void shmd_control_begin_for(struct shmd_client *client, struct shmd_request *r, const char *type, const char *topic,
                            uint32_t further_fields) {
    shmd_control_begin(client, r, type, 1 + further_fields);
    shmd_request_text(r, "topic", topic);
}

int shmd_control_post(struct shmd_client *client, const struct shmd_request *r) { return send_packet(client, r, 0); }

/* Have the daemon undo what nobody waits for any more. */
static void give_up(struct shmd_client *client, uint64_t target) {
    struct shmd_request cancel;
    char code[sizeof client->error_code], text[sizeof client->error_text]; /* why, which matters more */
    memcpy(code, client->error_code, sizeof code);
    memcpy(text, client->error_text, sizeof text);
    shmd_control_begin(client, &cancel, "cancel", 1);
    shmd_request_uint(&cancel, "target", target);
    (void)shmd_control_post(client, &cancel);
    memcpy(client->error_code, code, sizeof code);
    memcpy(client->error_text, text, sizeof text);
}

/* Both bells, or none where there are FIFOs instead; of a `resumed` only its seat knows which. */
static bool brings_its_bells(const struct shmd_reply *reply) {
    if (reply->type == SHMD_REPLY_RESUMED)
        return reply->fds == SHMD_BELLS || reply->fds == 0;
    if (reply->type == SHMD_REPLY_SEGMENT)
        return reply->fds == SHMD_BELLS + (reply->segment.file ? 1 : 0);
    bool grants = reply->type == SHMD_REPLY_PUBLISHER || reply->type == SHMD_REPLY_SUBSCRIBER;
    return !grants || reply->fds == (reply->topic.fifo ? 0 : SHMD_BELLS);
}

int shmd_control_ask(struct shmd_client *client, const struct shmd_request *r, enum shmd_reply_type want,
                     int64_t deadline_ns, struct shmd_reply *reply, int *fds) {
    int result = send_packet(client, r, deadline_ns);
    if (result != 0)
        return result;
    for (;;) {
        unsigned count;
        result = receive(client, deadline_ns, reply, fds, &count);
        if (result == -ETIMEDOUT)
            (void)shmd_fail(client, result, "the daemon did not answer in time");
        else if (result == -EINTR)
            (void)shmd_fail(client, result, "interrupted by a signal");
        if (result != 0) {
            if (client->fd >= 0)
                give_up(client, r->id);
            return result;
        }
        if (reply->type == want && reply->id == r->id && brings_its_bells(reply))
            return 0;
        close_all(fds, count);
        if (reply->type == SHMD_REPLY_REFUSED && (reply->id == r->id || reply->id == 0))
            return refused(client, reply);
        if (reply->id == r->id)
            return lost(client, -EPROTO, "it answered with something else than was asked for");
        heed(client, reply);
        if (shmd_now_ns() >= deadline_ns) { /* it may talk for ever */
            give_up(client, r->id);
            return shmd_fail(client, -ETIMEDOUT, "the daemon did not answer in time");
        }
    }
}

int shmd_control_do(struct shmd_client *client, const struct shmd_request *r, int64_t deadline_ns) {
    struct shmd_reply reply;
    int fds[SHMD_FDS_MAX];
    return shmd_control_ask(client, r, SHMD_REPLY_DONE, deadline_ns, &reply, fds);
}

void shmd_control_close(struct shmd_client *client, uint64_t handle) {
    struct shmd_request r;
    shmd_control_begin(client, &r, "close", 1);
    shmd_request_uint(&r, "handle", handle);
    (void)shmd_control_post(client, &r);
}

/* --- connecting --- */

static int open_socket(struct shmd_client *client, int64_t deadline_ns) {
    for (;;) {
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
            return shmd_fail(client, -errno, "no socket: %s", strerror(errno));
        if (connect(fd, (const struct sockaddr *)&client->address, sizeof client->address) == 0) {
            client->fd = fd;
            return 0;
        }
        int error = errno;
        close(fd);
        if (error == ENOENT || error == ECONNREFUSED)
            return shmd_control_absent(client, strerror(error));
        if (error != EAGAIN && error != EINTR)
            return shmd_fail(client, -error, "no shmd at %s: %s", client->address.sun_path, strerror(error));
        if (shmd_now_ns() >= deadline_ns)
            return shmd_fail(client, -ETIMEDOUT, "no shmd at %s: it does not accept connections",
                             client->address.sun_path);
        (void)poll(NULL, 0, CONNECT_RETRY_MS);
    }
}

/* This process's namespace as a number; 0 where it cannot be told. */
static uint64_t namespace_of(const char *path) {
    struct stat there;
    return stat(path, &there) == 0 ? (uint64_t)there.st_ino : 0;
}

void shmd_control_forget_roster(struct shmd_client *client) {
    if (client->roster.memory != NULL)
        (void)shmdt(client->roster.memory);
    client->roster.memory = NULL;
}

/* For bystander.c, and for the next daemon, which would know nothing of topics that go with their last participant if nobody
 * had this attached. What is no roster of this daemon's is left alone. */
static void hold_roster(struct shmd_client *client, const struct shmd_reply *welcome) {
    struct shmid_ds stat;
    uint8_t *roster = shmat((int)welcome->roster_id, NULL, SHM_RDONLY);
    shmd_control_forget_roster(client);
    if (roster == (void *)-1)
        return;
    if (shmctl((int)welcome->roster_id, IPC_STAT, &stat) == 0 && stat.shm_segsz == SHMD_ROSTER_BYTES &&
        shmd_is_roster(roster, welcome->instance_id))
        client->roster = (struct shmd_roster){roster, stat.shm_perm.cuid};
    else
        (void)shmdt(roster);
}

static int say_hello(struct shmd_client *client, int64_t deadline_ns) {
    struct shmd_request r;
    struct shmd_reply welcome;
    int fds[SHMD_FDS_MAX];
    shmd_control_begin(client, &r, "hello", 6);
    shmd_request_uint(&r, "major", SHMD_PROTOCOL_MAJOR);
    shmd_request_uint(&r, "minor", SHMD_PROTOCOL_MINOR);
    shmd_request_text(&r, "name", client->name);
    shmd_request_uint(&r, "ipc_namespace", namespace_of("/proc/self/ns/ipc"));
    shmd_request_uint(&r, "pid_namespace", namespace_of("/proc/self/ns/pid"));
    shmd_request_uint(&r, "resume", client->number);
    int result = shmd_control_ask(client, &r, SHMD_REPLY_WELCOME, deadline_ns, &welcome, fds);
    if (result != 0)
        return result;
    if (welcome.major != SHMD_PROTOCOL_MAJOR)
        return shmd_fail(client, -EPROTONOSUPPORT, "the daemon speaks version %u of the protocol, this library %u",
                         welcome.major, SHMD_PROTOCOL_MAJOR);
    hold_roster(client, &welcome);
    client->number = welcome.client;
    client->resumed = welcome.resumed;
    client->looked_ns = shmd_now_ns();
    if (welcome.settling)
        client->adrift_until_ns = client->looked_ns + SHMD_SETTLE_NS;
    return 0;
}

int shmd_control_connect(struct shmd_client *client, int64_t deadline_ns) {
    int result = open_socket(client, deadline_ns);
    if (result == 0)
        result = say_hello(client, deadline_ns);
    if (result != 0)
        shmd_control_lost(client);
    return result;
}
