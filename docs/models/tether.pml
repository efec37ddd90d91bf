/*
 * A new tether against publishers on a full `wait` topic.
 *
 * Publishers cache the slowest tethered cursor, so that an append needs no scan; `joins`, a counter in the ctl, tells
 * that a tether has appeared since. Who wants room first says so in `claim`, then looks at joins; only if that is as it
 * was, or if a new scan finds no cursor below, it moves `head`, and then the bytes. A joiner stores its cursor, bumps
 * joins, then looks at claim: if that has passed the cursor it has not joined, and starts over at the claim. Each side
 * writes its own word and then reads the other's, so one of them always sees the other. A claim that comes to nothing
 * is taken back; one whose owner died over it stays, and all it does is to make later joiners start a little later.
 * A cursor that moves up in a join may be what a publisher sleeps for, so a join rings for room as a read does.
 *
 * head itself must never move on trial. A head that is put back has meanwhile told a joined subscriber that it was
 * overtaken; and a head that nobody puts back, because its owner was killed, takes the records of a joined subscriber.
 *
 * Claims, though publisher 0 may be killed at any step, and subscribers may die or leave:
 *   1. no byte at or after the cursor of a subscriber that has joined is overwritten (assertion in publisher), and no
 *      such subscriber ever finds head beyond its cursor, even for a moment (assertion in reader);
 *   2. no publisher sleeps for ever beside room (that would be an invalid end state);
 *   3. no joiner is kept out by a claim that nobody stands behind any more (assertion in reader).
 * A record is one byte here, an append one or two records, the ring CAPACITY bytes and full at the start. The lock
 * (lock.pml), the slot's owner (slot.pml) and the bell for records (bell.pml) are taken for granted.
 *
 * `run` checks it, in these sizes:
 *   small: -DNR=1 -DRECS=1     3,084,631 states
 *   full:  -DNR=1 -DRECS=2     51,768,680 states
 * Each of these must fail:
 *   -DMUTANT_HEAD_ON_TRIAL   no claim: head itself goes ahead, and is put back      (claim 1)
 *   -DMUTANT_JOINS_FIRST     joins is looked at before the claim is stored          (claim 1)
 *   -DMUTANT_NO_LOOK         the joiner does not look at the claim                  (claim 1)
 *   -DMUTANT_SILENT_JOIN     a join does not ring for room                          (claim 2)
 *   -DMUTANT_SEEK_HEAD       the joiner starts over at head                         (claim 3)
 */
#ifndef CAPACITY
#define CAPACITY 2
#endif
#ifndef RECS            /* records to publish, all publishers together */
#define RECS 2
#endif
#ifndef NR              /* subscribers */
#define NR 1
#endif
#define NP 2            /* publishers */
#ifndef TRIES           /* after which a joiner gives up */
#define TRIES 2
#endif
#define NONE 255

byte head = 0, tail = CAPACITY, claim = 0;      /* in the log */
bit joined[NP];                                 /* in the ctl: joins, as "is not what publisher i last read there"; */
byte cursor[NR];
bit tethered[NR];                               /* this and the cursor are one word, the slot's */
byte space_armed = 0, space_rung = 0;
bit edge[NP];                                   /* the bell for room, in each publisher's epoll */
byte lock = 0, finished = 0, to_publish = RECS;
bit killed = 0;
byte owed[NR];                                  /* for the assertions: from where on a joined subscriber is owed */

inline ring() { d_step { edge[0] = 1; edge[1] = 1 } }
inline bell_check() {                           /* shmd_bell_check */
  remembered = space_armed;
  if
  :: remembered != space_rung -> ring(); atomic { space_rung = remembered; remembered = 0 }
  :: else -> remembered = 0
  fi
}
inline bump_joins() { d_step { joined[0] = 1; joined[1] = 1 } }
inline scan(result, from) {                     /* shmd_slowest_cursor; every cursor is a step */
  atomic { result = tail; i = 0 };
  do
  :: atomic { i < NR ->
     if
     :: tethered[i] && cursor[i] >= from && cursor[i] < result -> result = cursor[i]
     :: else
     fi;
     i++ }
  :: atomic { i == NR -> i = 0; break }
  od
}
inline killable() {                             /* in one step with what was done before: nothing lies between */
  if
  :: me == 0 && !killed -> killed = 1; goto dead
  :: skip
  fi
}
inline scan_if_joined() {
  if
  :: atomic { joined[me] -> joined[me] = 0 }; scan(slowest, h); no_room = (pos > slowest)
  :: atomic { !joined[me] -> skip }
  fi
}

proctype publisher(byte me) {
  byte i, pos, h, t, end, slowest, remembered;
  bit scanned, no_room;
append:
  atomic { lock == 0 -> lock = me + 1; h = head; t = tail; killable() };
  atomic {
    if
    :: to_publish == 0 -> lock = 0; goto done
    :: to_publish >= 1 -> end = t + 1
    :: to_publish >= 2 -> end = t + 2
    fi;
    if :: end - h > CAPACITY -> pos = end - CAPACITY :: else -> goto room fi    /* make_room */
  };
  if
  :: !scanned || pos > slowest -> joined[me] = 0; scan(slowest, h); scanned = 1
  :: else
  fi;
  no_room = (pos > slowest);
#ifdef MUTANT_JOINS_FIRST
  if :: !no_room -> scan_if_joined() :: else fi;
  if :: !no_room -> atomic { claim = pos; killable() } :: else fi;
#else
  if
  :: !no_room ->
#ifdef MUTANT_HEAD_ON_TRIAL
     atomic { claim = pos; head = pos; killable() };
#else
     atomic { claim = pos; killable() };
#endif
     scan_if_joined();
     if
#ifdef MUTANT_HEAD_ON_TRIAL
     :: no_room -> atomic { claim = h; head = h; killable() }
#else
     :: no_room -> atomic { claim = h; killable() }
#endif
     :: else
     fi
  :: else
  fi;
#endif
  if :: no_room -> goto no_room_left :: else fi;
  atomic { head = pos; killable() };
room:
  do
  :: atomic { t < end ->                        /* one byte, over what lay there a round before */
     do
     :: i < NR -> assert(owed[i] == NONE || t < owed[i] + CAPACITY); i++
     :: else -> i = 0; break
     od;
     t++;
     killable() }
  :: atomic { t == end -> break }
  od;
  atomic { to_publish = to_publish - (end - tail); tail = end; killable() };
  atomic { lock = 0; pos = 0; h = 0; t = 0; end = 0; goto append };
no_room_left:
  atomic { lock = 0; h = 0; t = 0; end = 0; no_room = 0 };
  atomic { space_armed++; h = head };           /* shmd_appender_arm */
  scan(t, h);
  atomic {
    if
    :: t >= pos -> h = 0; t = 0; pos = 0; goto append
    :: else -> h = 0; t = 0; pos = 0
    fi
  };
  atomic { edge[me] == 1 -> edge[me] = 0; goto append };        /* asleep */
dead:
  atomic {
    if :: lock == me + 1 && end > tail -> to_publish = to_publish - (end - tail) :: else fi;    /* never to come */
    if :: lock == me + 1 -> lock = 0 :: else fi;                /* the kernel, and who takes the lock over */
    pos = 0; h = 0; t = 0; end = 0; slowest = 0; scanned = 0; no_room = 0
  };
  ring();                                                       /* the daemon, for the dead */
done:
  finished++
}

inline mortal() {
  if
  :: goto dead
  :: skip
  fi
}

proctype reader(byte id) {
  byte pos, remembered, tries;
  bit quiet;
  atomic { tethered[id] = 1; cursor[id] = 0 };  /* the daemon: shmd_slot_grant */
  bump_joins();
seek:
  atomic {
    quiet = (finished == NP);
    if
#ifdef MUTANT_SEEK_HEAD
    :: pos = head
#else
    :: pos = claim
#endif
    :: pos = tail
    fi;
    mortal()
  };
  atomic { cursor[id] = pos; mortal() };        /* shmd_join */
  atomic { bump_joins(); mortal() };
  atomic {
    if
#ifndef MUTANT_NO_LOOK
    :: claim > pos ->
       assert(!quiet);
       tries++;
       if :: tries == TRIES -> goto dead :: else -> goto seek fi
#endif
    :: else -> owed[id] = pos; quiet = 0; tries = 0
    fi
  };
#ifndef MUTANT_SILENT_JOIN
  bell_check();
#endif
  do
  :: atomic { tail > pos || finished == NP ->   /* asleep until there is something to do */
     if
     :: tail > pos -> assert(head <= pos); pos++        /* copied; then looked at head */
     :: goto leave
     fi;
     mortal() };
     atomic { cursor[id] = pos; owed[id] = pos; mortal() };
     bell_check()
  od;
leave:
  atomic { owed[id] = NONE; tethered[id] = 0; cursor[id] = 0; pos = 0 };
  bell_check();
  goto done;
dead:
  atomic { owed[id] = NONE; tethered[id] = 0; cursor[id] = 0; pos = 0; quiet = 0; tries = 0; remembered = 0 };
  ring();                                       /* the daemon, for the dead */
done:
  skip
}

init {
  atomic {
    byte n;
    if
    :: skip                                     /* nothing was ever given up: the cursor of a new slot, 0, holds head */
    :: head = 1; claim = 1; tail = CAPACITY + 1
    fi;
    do
    :: n < NR -> owed[n] = NONE; run reader(n); n++
    :: else -> break
    od;
    run publisher(0);
    run publisher(1)
  }
}
