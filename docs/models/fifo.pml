/*
 * The bell for records over FIFOs: the counters of bell.pml, a FIFO for each reader, and a mark that says who sleeps.
 *
 * A reader that is about to sleep sets its mark, adds one to `armed`, and looks at tail once more. A publisher that finds
 * armed and `rung` different writes a byte into the FIFO of each reader that is marked, and after each byte clears that
 * mark, if it still is the one that it saw: every sleep has a mark of its own. Woken, a reader empties its FIFO, and then
 * looks. A publisher killed between byte and mark leaves a mark too many, which costs another byte; killed before the
 * byte, the next one writes it, or the daemon, which rings all marked readers for the dead.
 *
 * Claim: no reader sleeps for ever beside a record that it has not read (that would be an invalid end state), though
 * publisher 0 may be killed at any step between its commit and its store to rung.
 * The bell for room is the same code with the parts exchanged; only that a mark lies in a table, in any free place.
 *
 * `run` checks it, in these sizes:
 *   small: -DNR=1 -DRECS=1     495,578 states
 *   full:  -DNR=1 -DRECS=2     28,913,055 states
 * Each of these must fail:
 *   -DMUTANT_CLEAR_FIRST   a publisher clears the mark, then writes the byte
 *   -DMUTANT_SAME_MARK     all sleeps of a reader have the same mark
 *   -DMUTANT_MARK_LATE     a reader arms, then sets its mark
 *   -DMUTANT_LOOK_FIRST    a reader looks, then empties its FIFO
 *   -DMUTANT_NO_DAEMON     nobody rings for a dead publisher
 */
#define NP 2            /* publishers; number 0 may be killed, once */
#ifndef NR              /* readers */
#define NR 1
#endif
#ifndef RECS            /* records of each publisher */
#define RECS 2
#endif
#define FULL 2          /* bytes that fit into a FIFO */

byte tail = 0, rung = 0;                        /* in the log */
byte armed = 0;                                 /* in the ctl */
byte mark[NR];                                  /* in the ctl: 0, or which sleep of the reader it is */
byte fifo[NR];                                  /* bytes in it */
byte finished = 0;

inline killable() {
  if
  :: id == 0 -> goto dead
  :: skip
  fi
}
inline write_byte() { fifo[i] = (fifo[i] < FULL -> fifo[i] + 1 : FULL) }
inline clear_mark() { mark[i] = (mark[i] == seen -> 0 : mark[i]) }

proctype publisher(byte id) {
  byte records, remembered, i, seen;
  do
  :: records < RECS ->
     atomic { tail++; records++; killable() };  /* the commit */
     remembered = armed;                        /* shmd_bell_check */
     if
     :: remembered != rung ->
        i = 0;
        do
        :: i < NR ->
           seen = mark[i];                      /* ring_marked */
           if
           :: seen ->
#ifdef MUTANT_CLEAR_FIRST
              atomic { clear_mark(); killable() };
              atomic { write_byte(); killable() }
#else
              atomic { write_byte(); killable() };
              atomic { clear_mark(); killable() }
#endif
           :: else
           fi;
           i++
        :: else -> break
        od;
        rung = remembered;
        d_step { remembered = 0; i = 0; seen = 0 }
     :: else -> remembered = 0
     fi
  :: else -> goto done
  od;
dead:
#ifndef MUTANT_NO_DAEMON
  i = 0;
  do
  :: i < NR ->
     seen = mark[i];
     if
     :: seen -> write_byte(); clear_mark()
     :: else
     fi;
     i++
  :: else -> break
  od;
#endif
done:
  finished++
}

proctype reader(byte id) {
  byte position, sleeps;
  do
  :: fifo[id] -> fifo[id] = 0                   /* awake: the loop empties it, and nobody cares */
  :: tail > position -> position++              /* reads, perhaps not all there is */
  :: tail == position ->
#ifdef MUTANT_SAME_MARK
     sleeps = 1;
#else
     sleeps++;
#endif
#ifdef MUTANT_MARK_LATE
     armed++;
     mark[id] = sleeps;
#else
     mark[id] = sleeps;                         /* shmd_reader_arm */
     armed++;
#endif
     if
     :: tail != position -> mark[id] = (mark[id] == sleeps -> 0 : mark[id]); goto again
     :: else
     fi;
asleep:
     if
#ifdef MUTANT_LOOK_FIRST
     :: fifo[id] ->
        if
        :: tail != position -> fifo[id] = 0
        :: else -> fifo[id] = 0; goto asleep
        fi
#else
     :: fifo[id] ->                             /* woken: empties it, looks */
        fifo[id] = 0;
        if :: tail == position -> skip :: else fi
#endif
     :: atomic { finished == NP && position == tail && !fifo[id] -> break }
     fi;
again:
     skip
  od
}

init {
  atomic {
    byte n;
    do
    :: n < NR -> run reader(n); n++
    :: else -> break
    od;
    run publisher(0);
    run publisher(1)
  }
}
