/*
 * The lock: a word with its owner's thread id, and a kernel that tells when the owner is dead.
 *
 * A thread points list_op_pending (its own memory) at the word, then takes it by compare-and-swap from free or from
 * OWNER_DIED to its thread id; it lets go by storing free, and only then clears the pointer. When a thread has died, at
 * whatever step, the kernel looks where its pointer points, and marks the word OWNER_DIED only if it holds the id of
 * that thread. (The daemon may stand in for the kernel, with a proof of death: the same mark by the same rule.) No
 * timeout ever frees the word. In the critical section an append writes beyond tail and then commits by one store of
 * tail; it finds its sequence number in the last record. So who takes over has nothing to repair.
 *
 * Claims, though threads are killed at any step, up to DEATHS times, and a thread that is born later may have the
 * thread id of one that died:
 *   1. two living threads are never both in the critical section (assertion in publisher);
 *   2. the word is never stuck: no thread waits for ever for one that nobody holds (an invalid end state);
 *   3. what is committed is whole, and numbered 1, 2, 3, ... (assertion at each commit and at the end).
 *
 * `run` checks it, in these sizes:
 *   small: -DNP=3 -DRECS=1 -DDEATHS=2     198,464 states
 *   full:  -DNP=3 -DRECS=2 -DDEATHS=3     4,830,737 states
 * Each of these must fail:
 *   -DMUTANT_LATE_POINTER    the pointer is set after the compare-and-swap                 (claim 2)
 *   -DMUTANT_EARLY_FORGET    the pointer is cleared before the word is freed               (claim 2)
 *   -DMUTANT_ANY_DEAD        the kernel marks the word without looking whose it is         (claim 1)
 *   -DMUTANT_STORE           who takes over looks at the word, then stores its id          (claim 1)
 *   -DMUTANT_TIMEOUT         who waits for long takes a word whose owner is merely slow    (claim 1)
 *   -DMUTANT_EARLY_COMMIT    tail is stored before all of the record is written            (claim 3)
 *   -DMUTANT_COUNTER         the sequence number comes from a counter beside tail          (claim 3)
 */
#ifndef NP              /* publishers */
#define NP 2
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef RECS            /* records of each publisher, deaths aside */
#define RECS 1
#endif
#define RING 16         /* more than can be published: what is overwritten is not the matter here */
#define FREE 0
#define OWNER_DIED 255
#define TID (me + 1)

byte word = FREE;
bit pending[NP];        /* list_op_pending points at the word */
byte inside = 0;        /* living threads in the critical section */
byte tail = 0, deaths = 0;
byte first[RING], last[RING];   /* a record's two ends: its sequence number, in both */
#ifdef MUTANT_COUNTER
byte counter = 0;
#endif

inline killable() {                             /* in one step with what was done before: nothing lies between */
  if
  :: deaths < DEATHS -> deaths++; goto dead
  :: skip
  fi
}
inline entered() { inside++; assert(inside == 1); held = 1 }
inline left() { inside--; held = 0 }

proctype publisher(byte me) {
  byte seen, seq, t, records;
  bit held;
born:
  do
  :: records < RECS ->
take:
#ifndef MUTANT_LATE_POINTER
     atomic { pending[me] = 1; killable() };
#endif
     atomic { seen = word; killable() };
     if
#ifdef MUTANT_TIMEOUT
     :: true ->
#else
     :: seen == FREE || seen == OWNER_DIED ->
#endif
#ifdef MUTANT_STORE
        if
        :: seen == OWNER_DIED -> atomic { word = TID; entered(); killable() }
        :: else -> atomic {
             if
             :: word == seen -> word = TID; entered()
             :: else -> goto busy
             fi;
             killable() }
        fi
#else
        atomic {
          if
          :: word == seen -> word = TID; entered()
          :: else -> goto busy
          fi;
          killable()
        }
#endif
     :: else -> goto busy
     fi;
#ifdef MUTANT_LATE_POINTER
     atomic { pending[me] = 1; killable() };
#endif
     atomic {                                   /* current_end: only who holds the lock writes these */
       t = tail;
#ifdef MUTANT_COUNTER
       counter++;
       seq = counter;
#else
       if :: t == 0 -> seq = 1 :: else -> seq = last[t - 1] + 1 fi;
#endif
       killable()
     };
     atomic { first[t] = seq; killable() };
#ifdef MUTANT_EARLY_COMMIT
     atomic { tail = t + 1; killable() };
     atomic { last[t] = seq; killable() };
#else
     atomic { last[t] = seq; killable() };
     atomic { assert(first[t] == t + 1 && last[t] == t + 1); tail = t + 1; killable() };
#endif
     records++;
#ifdef MUTANT_EARLY_FORGET
     atomic { pending[me] = 0; killable() };
     atomic { word = FREE; left(); killable() };
#else
     atomic { word = FREE; left(); killable() };
     atomic { pending[me] = 0; killable() };
#endif
     atomic { seen = 0; seq = 0; t = 0 };
     goto next;
busy:
     atomic { pending[me] = 0; seen = 0; killable() };          /* SHMD_BUSY: not here, not now */
     (word == FREE || word == OWNER_DIED);      /* the coroutine comes back; pointless before this */
     goto take;
next:
     skip
  :: else -> goto done
  od;
dead:                                           /* it does nothing more; the others go on */
  if :: held -> atomic { left() } :: else fi;
  atomic {                                      /* the kernel, some time later: exit_robust_list */
    if
#ifdef MUTANT_ANY_DEAD
    :: pending[me] -> word = OWNER_DIED
#else
    :: pending[me] && word == TID -> word = OWNER_DIED
#endif
    :: else
    fi;
    pending[me] = 0; seen = 0; seq = 0; t = 0
  };
  goto born;                                    /* another thread with the same id */
done:
  atomic {
    t = 0;
    do
    :: t < tail -> assert(first[t] == t + 1 && last[t] == t + 1); t++
    :: else -> t = 0; break
    od
  }
}

init {
  atomic {
    byte n;
    do
    :: n < NP -> run publisher(n); n++
    :: else -> break
    od
  }
}
