/*
 * A slot changes hands.
 *
 * A slot is one word: incarnation, tethered, live, cursor. The daemon grants it by storing an incarnation that this
 * slot never had, and takes it back by a compare-and-swap to 0, nobody's. All that a holder does (join, cursor, leave)
 * is a compare-and-swap on the whole word, which expects its own incarnation. The daemon may also take just the tether
 * away: the holder's next compare-and-swap fails once, sees its own word without the tether, and goes on without one.
 * The daemon may do any of this while the holder lives, is slow, and knows nothing of it.
 *
 * Claims:
 *   1. a holder changes the word only while the slot is granted to it (assertion in `stored`): it can neither move
 *      cursor and tether of the next holder, nor raise a tether in a slot that is nobody's;
 *   2. after the daemon took a tether away, it comes back only by a join (assertion in `stored`);
 *   3. a slot that was taken back holds nobody up: it is not tethered (assertion in daemon).
 *
 * `run` checks it, in these sizes:
 *   small: -DGRANTS=2 -DREADS=2     115,380 states
 *   full:  -DGRANTS=3 -DREADS=2     6,086,232 states
 * Each of these must fail:
 *   -DMUTANT_PLAIN_STORE     a holder looks at the word, then stores its cursor              (claim 1)
 *   -DMUTANT_KEPT_NUMBER     taking back leaves the incarnation: a late join passes for good (claim 1)
 *   -DMUTANT_SAME_NUMBER     incarnations are used again                                     (claim 1)
 *   -DMUTANT_OWN_TETHER      the second try puts back the tether that was taken away         (claim 2)
 */
#ifndef GRANTS
#define GRANTS 2        /* one after the other, of one slot */
#endif
#ifndef READS
#define READS 2         /* cursor stores of each holder */
#endif

/* The word: incarnation * 16 + cursor * 4 + tethered * 2 + live. */
#define LIVE 1
#define TETHERED 2
#define WORD(number, cursor, flags) ((number) * 16 + (cursor) * 4 + (flags))
#define NUMBER(w) ((w) / 16)
#define WITHOUT_TETHER(w) ((w) - ((w) & TETHERED))
#ifdef MUTANT_SAME_NUMBER
#define INCARNATION(holder) 1
#else
#define INCARNATION(holder) ((holder) + 1)
#endif

byte word = 0;
byte granted = 0;               /* to which holder, plus one; 0: nobody */
bit taken_away = 0;             /* the tether, from the present holder, since its last join */

inline stored(joining) {        /* in one step with the store */
  assert(granted == me + 1);
  if
  :: joining -> taken_away = 0
  :: else -> assert(!taken_away || !(word & TETHERED))
  fi
}

inline swap(expected, new, joining) {           /* a compare-and-swap; failing, it tells what was there */
  atomic {
    if
    :: word == expected -> word = new; stored(joining); done = 1
    :: else -> expected = word; done = 0
    fi
  }
}

/* A cursor store or a leave: twice at most, the second time without the tether. */
inline change(new_cursor, new_flags) {
  seen = own;
  tries = 0;
  do
  :: tries < 2 && NUMBER(seen) == INCARNATION(me) && (seen & LIVE) ->
#ifdef MUTANT_OWN_TETHER
     new = WORD(INCARNATION(me), new_cursor, own & (new_flags));
#else
     new = WORD(INCARNATION(me), new_cursor, seen & (new_flags));
#endif
#ifdef MUTANT_PLAIN_STORE
     done = (word == seen);
     if :: done -> atomic { word = new; stored(0) } :: else -> seen = word fi;
#else
     swap(seen, new, 0);
#endif
     if
     :: done -> own = new; break
     :: !done && seen != WITHOUT_TETHER(own) -> own = 0; break
     :: else -> tries++
     fi
  :: else -> own = 0; break
  od;
  atomic { seen = 0; new = 0; tries = 0; done = 0 }
}

proctype holder(byte me) {
  byte own, seen, new, tries, reads;
  bit done;
  seen = word;                                  /* shmd_reader_init: was told its incarnation some time ago */
  if :: NUMBER(seen) != INCARNATION(me) -> goto stale :: else fi;
join:
  seen = word;                                  /* shmd_join */
  if :: NUMBER(seen) != INCARNATION(me) -> goto stale :: else fi;
  new = WORD(INCARNATION(me), 1, LIVE | TETHERED);
  swap(seen, new, 1);
  if :: done -> own = new :: else -> goto stale fi;
  atomic { seen = 0; new = 0; done = 0 };
  do
  :: reads < READS -> reads++; change(2 + reads % 2, LIVE | TETHERED)
  :: reads < READS && own -> reads++; goto join /* once more, as after a tether that was taken away */
  :: break
  od;
  change(0, 0);                                 /* shmd_leave */
stale:
  skip
}

active proctype daemon() {
  byte holders = 0, seen;
  do
  :: holders < GRANTS ->
     atomic { word = WORD(INCARNATION(holders), 0, LIVE | TETHERED); granted = holders + 1; taken_away = 0;
              run holder(holders) };            /* shmd_slot_grant; from here on the holder goes its own ways */
     do
     :: !taken_away ->                          /* shmd_slot_untether */
        seen = word;
        if
        :: seen & TETHERED ->
           atomic { if :: word == seen -> word = WITHOUT_TETHER(seen); taken_away = 1 :: else fi }
        :: else
        fi
     :: break
     od;
     do                                         /* shmd_slot_release */
     :: seen = word;
        atomic {
          if
#ifdef MUTANT_KEPT_NUMBER
          :: word == seen -> word = WORD(INCARNATION(holders), 0, 0); granted = 0; break
#else
          :: word == seen -> word = 0; granted = 0; break
#endif
          :: else
          fi
        }
     od;
     taken_away = 0;
     assert(!(word & TETHERED));
     holders++
  :: else -> break
  od
}
