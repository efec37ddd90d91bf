/*
 * Where the daemon's socket is. The list of directories is that of shmd/places.py, which says why it is so:
 *
 *     an ordinary user                        root
 *     1. $XDG_RUNTIME_DIR/shmd                1. /run/shmd
 *     2. /run/user/UID/shmd                   2. $XDG_RUNTIME_DIR/shmd
 *     3. /tmp/shmd-UID
 *     4. /run/shmd, the system's
 *
 * The first that holds a socket is it. A directory that another user owns, or may write to, is left out: whoever can write to
 * it chooses who answers there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control.h"

#define SYSTEM_DIR "/run/shmd"
#define NOTE_BYTES 1024u

/* A search under way: what the message has to say if nothing is found. */
struct search {
    struct shmd_client *client;
    uid_t uid;
    char looked[NOTE_BYTES];   /* where it looked */
    char left_out[NOTE_BYTES]; /* where it did not, and why */
    char home[PATH_MAX];       /* where a daemon of this user would listen */
};

static void note(char *notes, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void note(char *notes, const char *format, ...) {
    size_t used = strlen(notes);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(notes + used, NOTE_BYTES - used, format, arguments); /* what is too long for the message is cut */
    va_end(arguments);
}

static int set_path(struct shmd_client *client, const char *path) {
    size_t size = strlen(path);
    if (size >= sizeof client->address.sun_path)
        return shmd_fail(client, -ENAMETOOLONG, "a socket's path cannot have %zu bytes: %s", size, path);
    client->address.sun_family = AF_UNIX;
    memcpy(client->address.sun_path, path, size + 1);
    return 0;
}

/* Whether only `uid` can put things into `directory`; else `why`. Where others may make links, one is not followed. */
static bool is_private(const char *directory, uid_t uid, bool follow, char *why, size_t why_bytes) {
    struct stat found;
    if ((follow ? stat : lstat)(directory, &found) != 0)
        snprintf(why, why_bytes, "%s", strerror(errno));
    else if (!S_ISDIR(found.st_mode))
        snprintf(why, why_bytes, "it is not a directory");
    else if (found.st_uid != uid)
        snprintf(why, why_bytes, "it belongs to uid %u", (unsigned)found.st_uid);
    else if (found.st_mode & (S_IWGRP | S_IWOTH))
        snprintf(why, why_bytes, "others may write to it (mode %04o)", (unsigned)(found.st_mode & 07777));
    else
        return true;
    return false;
}

/* 0: the socket in `directory` is the one, and is the client's address now. -ENOENT: there is none. */
static int look(struct search *search, const char *directory) {
    char path[PATH_MAX];
    struct stat there;
    if (snprintf(path, sizeof path, "%s/control.sock", directory) >= (int)sizeof path)
        return shmd_fail(search->client, -ENAMETOOLONG, "a socket's path cannot be that long: %s", directory);
    note(search->looked, "%s%s", *search->looked ? ", " : "", path);
    if (!*search->home && (search->uid == 0 || strcmp(directory, SYSTEM_DIR) != 0))
        memcpy(search->home, path, sizeof path);
    if (stat(path, &there) != 0 && errno != EACCES) /* who may not see it is told so when it connects */
        return -ENOENT;
    return set_path(search->client, path);
}

static void leave_out(struct search *search, const char *directory, const char *why) {
    note(search->left_out, "; left out %s: %s", directory, why);
}

static int look_as_announced(struct search *search) {
    const char *announced = secure_getenv("XDG_RUNTIME_DIR");
    char directory[PATH_MAX], why[128];
    if (announced == NULL || !*announced)
        return -ENOENT;
    if (snprintf(directory, sizeof directory, "%s/shmd", announced) >= (int)sizeof directory)
        leave_out(search, "$XDG_RUNTIME_DIR", "it is too long");
    else if (*announced != '/')
        leave_out(search, directory, "it is a relative path");
    else if (!is_private(announced, search->uid, true, why, sizeof why))
        leave_out(search, directory, why);
    else
        return look(search, directory);
    return -ENOENT;
}

static int look_at_users_own(struct search *search) {
    char directory[64], why[128];
    struct stat there;
    snprintf(directory, sizeof directory, "/run/user/%u", (unsigned)search->uid);
    if (is_private(directory, search->uid, true, why, sizeof why)) {
        strcat(directory, "/shmd");
        int result = look(search, directory);
        if (result != -ENOENT)
            return result;
    }
    snprintf(directory, sizeof directory, "/tmp/shmd-%u", (unsigned)search->uid);
    if (lstat(directory, &there) != 0 || is_private(directory, search->uid, false, why, sizeof why))
        return look(search, directory);
    leave_out(search, directory, why);
    return -ENOENT;
}

static int look_everywhere(struct search *search) {
    int result = search->uid == 0 ? look(search, SYSTEM_DIR) : look_as_announced(search);
    if (result == -ENOENT)
        result = search->uid == 0 ? look_as_announced(search) : look_at_users_own(search);
    return result == -ENOENT && search->uid != 0 ? look(search, SYSTEM_DIR) : result;
}

int shmd_control_find(struct shmd_client *client, const char *path) {
    if (path == NULL)
        path = secure_getenv("SHMD_SOCKET");
    if (path != NULL && *path)
        return set_path(client, path);
    struct search search = {.client = client, .uid = geteuid()};
    int result = look_everywhere(&search);
    if (result != -ENOENT)
        return result;
    const char *home = search.home;
    return shmd_fail(client, -ENOENT, "no shmd found: looked at %s%s (%s%s)", search.looked, search.left_out,
                     *home ? "start one with: shmd serve, which listens at "
                           : "choose another place for both sides: shmd serve --runtime-dir DIR, and SHMD_SOCKET=DIR/control.sock",
                     home);
}

int shmd_control_absent(struct shmd_client *client, const char *why) {
    const char *path = client->address.sun_path;
    if (geteuid() != 0 && strcmp(path, SYSTEM_DIR "/control.sock") == 0)
        return shmd_fail(client, -ENOENT,
                         "no shmd at %s: %s (have root start the system's, or start one of your own with: shmd serve)", path, why);
    return shmd_fail(client, -ENOENT, "no shmd at %s: %s (start one with: shmd serve --socket %s)", path, why, path);
}
