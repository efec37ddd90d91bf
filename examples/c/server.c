/*
 * The classic server: requests come through shared memory, and a byte in a FIFO says that one is there.
 *
 *     server FILE
 *
 * Answers each request with its text in capitals. The segment's key is ftok(FILE, 'x'); the FIFO is FILE.server. It uses
 * no processor time while nobody asks. What it made it removes when it is interrupted.
 */
#include <ctype.h>

#include "exchange.h"

static void serve(struct exchange *exchange, const char *file, unsigned index) {
    char text[TEXT_BYTES], path[PATH_MAX];
    if (index >= SLOTS) /* anybody who may write to the FIFO can write anything */
        return;
    struct slot *slot = &exchange->slots[index];
    if (atomic_load_explicit(&slot->state, memory_order_acquire) != REQUEST)
        return;
    memcpy(text, slot->text, sizeof text); /* once: the client could change it under our hands */
    text[sizeof text - 1] = 0;
    for (char *c = text; *c; c++)
        *c = (char)toupper((unsigned char)*c);
    memcpy(slot->text, text, sizeof text);
    atomic_store_explicit(&slot->state, REPLY, memory_order_release);
    fifo_path(path, file, (int)index);
    wake(path, 0); /* if the client has died meanwhile, nobody minds */
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: server FILE\n");
        return 2;
    }
    char path[PATH_MAX];
    unsigned char index;
    int id;
    bool made;
    catch_signals();
    signal(SIGPIPE, SIG_IGN); /* a client may close its FIFO between our open and our write */
    struct exchange *exchange = attach_by_key(argv[1], 'x', sizeof *exchange, &id, &made);
    fifo_path(path, argv[1], -1);
    int fifo = make_fifo(path);
    waits_on = fifo;
    printf("ready\n");
    fflush(stdout);
    while (!stopped && read(fifo, &index, 1) == 1)
        serve(exchange, argv[1], index);
    close(fifo);
    unlink(path);
    shmdt(exchange);
    if (made)
        shmctl(id, IPC_RMID, NULL);
    return 0;
}
