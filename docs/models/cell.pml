/*
 * A cell: writers replace a value as a whole, readers copy it without a lock.
 *
 * Value n lies in buffer n & 1. A writer, under the lock: begun = index + 1; the words of the value, one after the other;
 * index = begun. A reader: n = index; the words of buffer n & 1; then begun: more than n + 1 means that store n + 2 has
 * come to this buffer, and the copy is thrown away. A writer may be killed at any step; the kernel then frees the lock
 * (lock.pml). Two writers: one that dies and its successor, who may also come too early. Readers store nothing, so that
 * one says as much as many.
 *
 * Claims:
 *   1. a load gives exactly the words of the store that it names, and that one was complete (assertion in `accept`);
 *   2. when no writer is left, wherever they died, a load gives the last complete store at the first try (last_reader);
 *   3. a reader never gets an older value after a newer one (assertion in `accept`);
 *   4. no writer waits for ever, nor does anybody else (no invalid end state).
 *
 * `run` checks it, in these sizes:
 *   small: -DSTORES=2 -DREADERS=1 -DLOADS=2     1,547,710 states
 *   full:  -DSTORES=2 -DREADERS=2 -DLOADS=1     27,401,764 states
 *   full:  -DSTORES=3 -DREADERS=1 -DLOADS=3     59,645,278 states
 * Each of these must fail:
 *   -DMUTANT_INDEX_FIRST   index is stored before the words                       (claim 1)
 *   -DMUTANT_BEGUN_LATE    begun is stored after the words                        (claim 1)
 *   -DMUTANT_TWO_AHEAD     a reader accepts what store n + 2 has begun to replace (claim 1)
 *   -DMUTANT_NO_LOCK       writers do not take turns                              (claim 1)
 *   -DMUTANT_ONE_BUFFER    one buffer, as in a seqlock                            (claim 2)
 */
#ifndef STORES
#define STORES 2        /* of each writer */
#endif
#ifndef READERS
#define READERS 1
#endif
#ifndef LOADS
#define LOADS 2         /* of each reader, tried twice each */
#endif
#define WRITERS 2
#define NOBODY 0

#ifdef MUTANT_ONE_BUFFER
#define WORD(number, i) (i)
#define AHEAD 0
#else
#define WORD(number, i) (((number) % 2) * 2 + (i))
#ifdef MUTANT_TWO_AHEAD
#define AHEAD 2
#else
#define AHEAD 1
#endif
#endif

byte index = 0, begun = 0;
byte word[4];
byte lock = NOBODY;
byte stored[WRITERS * STORES + 1];      /* the value of each complete store, by its number */
byte tickets = 0;                       /* values given out: no two stores have the same */
byte writing = WRITERS;

/* The copy `first`, `second` of buffer n & 1 is what store n stored. */
inline accept() {
  atomic {
    assert(first == stored[n] && second == stored[n]);
    assert(n >= last);
    last = n
  }
}

proctype writer(byte me) {
  byte number, value, left = STORES;
  do
  :: left > 0 ->
     left--;
     atomic { tickets++; value = tickets };
#ifndef MUTANT_NO_LOCK
     if :: atomic { lock == NOBODY -> lock = me } :: goto dead fi;
#endif
     if :: number = index + 1 :: goto dead fi;
#ifdef MUTANT_INDEX_FIRST
     if :: atomic { index = number; stored[number] = value } :: goto dead fi;
#endif
#ifndef MUTANT_BEGUN_LATE
     if :: begun = number :: goto dead fi;
#endif
     if :: word[WORD(number, 0)] = value :: goto dead fi;
     if :: word[WORD(number, 1)] = value :: goto dead fi;
#ifdef MUTANT_BEGUN_LATE
     if :: begun = number :: goto dead fi;
#endif
#ifndef MUTANT_INDEX_FIRST
     if :: atomic { index = number; stored[number] = value } :: goto dead fi;
#endif
     if :: lock = NOBODY :: goto dead fi
  :: else -> break
  od;
dead:
  atomic {                              /* the kernel's part, where it was killed */
    if :: lock == me -> lock = NOBODY :: else fi;
    writing--
  }
}

proctype reader() {
  byte n, first, second, last = 0, tries, left = LOADS;
  do
  :: left > 0 ->
     left--;
     tries = 2;
     do
     :: tries > 0 ->
        tries--;
        n = index;
        if :: n == 0 -> break :: else fi;
        first = word[WORD(n, 0)];
        second = word[WORD(n, 1)];
        if
        :: begun <= n + AHEAD -> accept(); break
        :: else                         /* overtaken: try again */
        fi
     :: else -> break
     od;
     atomic { n = 0; first = 0; second = 0; tries = 0 }
  :: else -> break
  od
}

proctype last_reader() {
  byte n, first, second, last = 0;
  atomic { writing == 0 -> n = index };
  if
  :: n > 0 ->
     first = word[WORD(n, 0)];
     second = word[WORD(n, 1)];
     assert(begun <= n + AHEAD);
     accept()
  :: else
  fi
}

init {
  byte i = 1;
  atomic {
    do :: i <= WRITERS -> run writer(i); i++ :: else -> break od;
    i = 0;
    do :: i < READERS -> run reader(); i++ :: else -> break od;
    run last_reader()
  }
}
