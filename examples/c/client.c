/*
 * The classic client: ask the server of the same FILE, and print its answer.
 *
 *     client FILE TEXT
 *
 * Any number may ask at a time: each takes a slot of its own. One that died with a slot leaves its pid in it, and the next
 * client takes it over.
 */
#include "exchange.h"

static int slot_of_ours = -1;
static struct exchange *exchange;

static bool is_dead(uint32_t pid) { return kill((pid_t)pid, 0) != 0 && errno == ESRCH; }

static int take_slot(void) {
    for (int i = 0; i < SLOTS; i++) {
        uint32_t owner = atomic_load(&exchange->slots[i].owner);
        if (owner != 0 && !is_dead(owner))
            continue;
        if (atomic_compare_exchange_strong(&exchange->slots[i].owner, &owner, (uint32_t)getpid()))
            return i;
    }
    fprintf(stderr, "client: %d clients are asking already\n", SLOTS);
    exit(1);
}

/* Wait until the server has answered; false if we are interrupted. */
static bool wait_for_reply(struct slot *slot, int fifo) {
    char byte;
    while (atomic_load_explicit(&slot->state, memory_order_acquire) != REPLY) /* a byte may be left from another time */
        if (read(fifo, &byte, 1) != 1)
            return false;
    return true;
}

int main(int argc, char **argv) {
    if (argc != 3 || strlen(argv[2]) >= TEXT_BYTES) {
        fprintf(stderr, "usage: client FILE TEXT (of at most %d bytes)\n", TEXT_BYTES - 1);
        return 2;
    }
    char own_path[PATH_MAX], server_path[PATH_MAX], reply[TEXT_BYTES];
    int id;
    catch_signals();
    exchange = attach_by_key(argv[1], 'x', sizeof *exchange, &id, NULL);
    slot_of_ours = take_slot();
    struct slot *slot = &exchange->slots[slot_of_ours];
    fifo_path(own_path, argv[1], slot_of_ours);
    fifo_path(server_path, argv[1], -1);
    int fifo = make_fifo(own_path); /* before the request, so that the server finds it */
    waits_on = fifo;
    strcpy(slot->text, argv[2]);
    atomic_store_explicit(&slot->state, REQUEST, memory_order_release);
    bool answered = false;
    if (!wake(server_path, (unsigned char)slot_of_ours))
        fprintf(stderr, "client: there is no server for %s\n", argv[1]);
    else
        answered = wait_for_reply(slot, fifo);
    if (answered) {
        memcpy(reply, slot->text, sizeof reply);
        reply[sizeof reply - 1] = 0;
        printf("%s\n", reply);
    }
    unlink(own_path);
    close(fifo);
    atomic_store(&slot->state, IDLE);
    atomic_store(&slot->owner, 0);
    shmdt(exchange);
    return answered ? 0 : 1;
}
