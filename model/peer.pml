/*
 * Peer mode: the passives promise, the store arbitrates. One reign, from its claim (in store mode)
 * until a passive starts instead.
 *
 * Every participant may stall for any time between any two steps, so a frozen process needs no state
 * of its own. An ask may be answered late, twice, or never; an answer may arrive late or never. A
 * write to the store may be applied at any later time, and its reply may be lost. The role key may
 * vanish at any time (its lease ended, or was dropped early). Passives restart and forget everything.
 *
 * A passive sees every new version of the record at once. That is the worst case for safety: its wait
 * begins as early as it can, and its claim may still come at any later time.
 *
 * Never two: when a passive starts, the holder's validity is over.
 * Always back: with -DLIVENESS, the holder's host crashes at any moment, and then a passive starts
 * within TAKEOVER ticks.
 */

#ifndef N
#define N 2            /* passives */
#endif
#ifndef ROUNDS
#define ROUNDS 1       /* rounds under way at once */
#endif
#ifndef P
#define P 2            /* length of a promise */
#endif
#ifndef V
#define V 3            /* validity of a renewal in store mode */
#endif
#ifndef CHANGES
#define CHANGES 2
#endif
#ifndef RESTARTS
#define RESTARTS 1
#endif
#ifndef DROPS
#define DROPS 1        /* how often the role key vanishes */
#endif
#ifndef TAKEOVER
#define TAKEOVER V
#endif

#define STORE 0
#define PEER  1
#define BIT(p) (1 << (p))

/* The store: the term record, and whether the role key is bound to the holder's lease. */
bit rmode; byte rlist; byte rdebt; bit key = 1;
byte claimed = N;      /* the passive whose claim is in the record; N: none */
bit orphan;            /* the process that made that claim has ended */
bit taken;             /* and the next process has read it */

/* The holder: its validity, what it knows of the record, and the change that it has sent. */
byte val = V;          /* its remaining validity; the guard ends the program at 0, for good */
byte vp, vs;           /* where both count: the remaining worth of the last round and renewal */
bit hmode; byte hlist;
#define NOTHING 0
#define SENT    1      /* not applied yet, and perhaps never */
#define WRITTEN 2      /* applied, and not known yet */
byte change; bit cmode; byte clist; byte cdebt;
byte changes;
bit crashed;

/* Rounds: at age P there is none. A renewal: sent, or answered by the store; its age. */
byte age[ROUNDS], answers[ROUNDS];
byte renewal, rage;
bit rebind;            /* a rebinding is under way */
bit rebindok;          /* and the record has not changed since */

/* The passives. */
byte promised[N];      /* its remaining promise */
byte owe[N];           /* the debt of the current version, from when it was first seen */
byte wait[N];          /* the remaining wait for an absent role key */
#define BY_PROMISE 1
#define BY_ABSENCE 2
byte claim[N];         /* a claim that is under way */
bit claimok[N];        /* the record has not changed since it was sent */
bit mine[N];           /* this process sent it */
byte restarts, drops;
byte late; bit started;

#define GRANT(m) (m == PEER -> P : V)
#define MAX(a, b) (a > b -> a : b)
#define MIN(a, b) (a < b -> a : b)

#ifdef MUT_ANY_VERSION
bit view[N];           /* listed, in the version that it read last */
#endif
#if defined(MUT_OLD_SIGHT) || defined(MUT_ANY_VERSION)
#define OWE(p) skip
#else
#define OWE(p) owe[p] = rdebt
#endif

/* A write to the record: its debt counts anew, and writes that compare with the old version fail. */
#if N == 2
#define NEW_VERSION OWE(0); OWE(1); claimok[0] = 0; claimok[1] = 0; rebindok = 0
#define ABSENT(w) wait[0] = w; wait[1] = w
#else
#define NEW_VERSION OWE(0); OWE(1); OWE(2); claimok[0] = 0; claimok[1] = 0; claimok[2] = 0; rebindok = 0
#define ABSENT(w) wait[0] = w; wait[1] = w; wait[2] = w
#endif

#ifdef MUT_READ_OLD
bit deluded;           /* has read the old record, and takes its change as refused */
#define PENDING (change != NOTHING && !deluded)
#else
#define PENDING (change != NOTHING)
#endif

/* Rule 3: what a round needs while a change is not known to be written or refused. */
#ifdef MUT_PENDING_NEW
#define NEEDED (PENDING && cmode == PEER -> clist : hlist)
#else
#ifdef MUT_PENDING_OLD
#define NEEDED (hmode == PEER -> hlist : clist)
#else
#define NEEDED ((hmode == PEER -> hlist : 0) | (PENDING && cmode == PEER -> clist : 0))
#endif
#endif
#ifdef MUT_PENDING_STORE
#define STUCK false
#else
#define STUCK (PENDING && hmode == PEER && cmode == STORE)
#endif
#define PEERS_COUNT (hmode == PEER || PENDING && cmode == PEER)

/* Rule 5: with stop, the earlier of the peers' and the store's; with failsafe, the peers' alone. */
#ifdef FAILSAFE
#define STORE_COUNTS (hmode == STORE)
#else
#ifdef MUT_STOP_PEERS_ALONE
#define STORE_COUNTS (hmode == STORE)
#else
#define STORE_COUNTS true
#endif
#endif

#ifdef MUT_NOT_STICKY
#define ALIVE true
#else
#define ALIVE (val > 0)
#endif

#define FORGET_PROOFS if :: !(PEERS_COUNT && STORE_COUNTS) -> vp = 0; vs = 0 :: else fi

/* peers and store are the worth of a new proof; zero: it is of the other kind. */
inline extend(peers, store) {
  if :: PEERS_COUNT && STORE_COUNTS -> vp = MAX(vp, peers); vs = MAX(vs, store);
        if :: !STUCK && ALIVE -> val = MAX(val, MIN(vp, vs)) :: else fi
     :: PEERS_COUNT && !(STORE_COUNTS) -> if :: !STUCK && ALIVE -> val = MAX(val, peers) :: else fi
     :: !(PEERS_COUNT) -> if :: !STUCK && ALIVE -> val = MAX(val, store) :: else fi
  fi
}

/* Rule 6. */
#ifdef MUT_DEBT_GRANT
#define DEBT(m) GRANT(m)
#else
#ifdef MUT_DEBT_LAST
#define DEBT(m) MAX(GRANT(m), GRANT(hmode))
#else
#define DEBT(m) MAX(GRANT(m), val)
#endif
#endif

#define HOLDS (!crashed && ALIVE)

inline send(m, l) {
  if :: hmode == STORE -> vs = val :: else fi;
  cmode = m; clist = l; cdebt = DEBT(m); change = SENT; changes++;
  vp = 0;                /* a round that was complete for one list need not be for two */
  printf("holder: sends a change to %d, list %d, debt %d\n", m, l, cdebt)
}
#define CHANGE(m, l) \
  :: d_step { HOLDS && changes < CHANGES && change == NOTHING && (hmode != m || m == PEER && hlist != l) -> send(m, l) }

#ifdef MUT_READ_OLD
#define BELIEVE deluded = 0
#else
#define BELIEVE skip
#endif
inline settle() { BELIEVE; change = NOTHING; cmode = 0; clist = 0; cdebt = 0; FORGET_PROOFS }
inline adopt() { hmode = cmode; hlist = clist; settle() }

#ifdef MUT_ONE_ANSWERS
#define COMPLETE(r) (answers[r] & NEEDED) != 0
#else
#ifdef MUT_ANY_ROUND
#define COMPLETE(r) ((answers[0] | answers[ROUNDS - 1]) & NEEDED) == NEEDED
#else
#define COMPLETE(r) (answers[r] & NEEDED) == NEEDED
#endif
#endif
#ifdef MUT_FROM_REPLY
#define WORTH(r) P
#else
#define WORTH(r) (P - age[r])
#endif

#define ROUND(r) \
  :: d_step { HOLDS && age[r] > 0 && PEERS_COUNT && (ROUNDS == 1 || age[ROUNDS - 1 - (r)] > 0) -> \
       age[r] = 0; answers[r] = 0; printf("holder: asks (round %d)\n", r) } \
  :: d_step { HOLDS && age[r] < P && NEEDED != 0 && COMPLETE(r) -> \
       extend(WORTH(r), 0); \
       printf("holder: round %d is complete at age %d, valid for %d\n", r, age[r], val); age[r] = P; answers[r] = 0 }

/* Rule 2: a promise and a claim exclude each other. */
#ifdef MUT_PROMISE_CLAIMING
#define CLAIMS(p) false
#else
#define CLAIMS(p) (claim[p] != 0 && mine[p] || claimed == p && taken)
#endif
#define ANSWER(p, r) \
  :: d_step { age[r] < P && !CLAIMS(p) && (NEEDED & BIT(p)) != 0 && (!(answers[r] & BIT(p)) || promised[p] < P) -> \
       answers[r] = answers[r] | BIT(p); promised[p] = P; printf("passive %d: promises (round %d)\n", p, r) }

#ifdef MUT_UNLISTED
#define LISTED(p) (rmode == PEER)
#else
#ifdef MUT_ANY_VERSION
#define LISTED(p) view[p]
#else
#define LISTED(p) (rmode == PEER && (rlist & BIT(p)) != 0)
#endif
#endif
#ifdef MUT_ANY_VERSION
#define UNCHANGED(p) true
#else
#define UNCHANGED(p) claimok[p]
#endif
#ifdef MUT_EARLY_CLAIM
#define LAPSED(p) true
#else
#define LAPSED(p) (promised[p] == 0)
#endif
#ifdef MUT_IGNORE_DEBT
#define PAID(p) true
#else
#define PAID(p) (owe[p] == 0)
#endif
#ifdef MUT_RESTART
#define SIGHT 0
#else
#define SIGHT rdebt
#endif
/* Rule 5, the other side: if only the peers' promises count, an absent role key proves nothing. */
#ifdef FAILSAFE
#ifdef MUT_FAILSAFE_UNLISTED
#define ABSENCE_COUNTS true
#else
#define ABSENCE_COUNTS (rmode == STORE)
#endif
#else
#define ABSENCE_COUNTS true
#endif
#ifdef MUT_ORPHAN
#define TAKE_UP(p) true
#else
#define TAKE_UP(p) (promised[p] == 0)
#endif
#ifdef MUT_NO_ABSENCE_WAIT
#define ABSENCE_WAIT 0
#else
#define ABSENCE_WAIT V
#endif

#ifdef REACH_START
#define STARTED assert(false)
#else
#define STARTED skip
#endif

inline start(p) {
  printf("passive %d: starts; the holder is valid for %d\n", p, val);
  assert(val == 0);
  started = 1;
  STARTED
}

#define PASSIVE(p) \
  :: d_step { claimed == N && claim[p] == 0 && LAPSED(p) && PAID(p) && LISTED(p) -> \
       claim[p] = BY_PROMISE; claimok[p] = 1; mine[p] = 1; printf("passive %d: claims, its promise has run out\n", p) } \
  :: d_step { claimed == N && claim[p] == 0 && LAPSED(p) && PAID(p) && !LISTED(p) && !key && wait[p] == 0 && ABSENCE_COUNTS -> \
       claim[p] = BY_ABSENCE; claimok[p] = 1; mine[p] = 1; printf("passive %d: claims, the role key is absent\n", p) } \
  :: d_step { claim[p] != 0 -> \
       if \
       :: claimed == N && UNCHANGED(p) && (claim[p] == BY_PROMISE || !key) -> \
            claimed = p; key = 0; orphan = !mine[p]; rdebt = 0; NEW_VERSION; \
            printf("store: the claim of passive %d is written\n", p); \
            if :: !orphan -> start(p) :: orphan -> skip fi \
       :: else -> printf("store: the claim of passive %d is refused\n", p) \
       fi; \
       claim[p] = 0; claimok[p] = 0; mine[p] = 0 } \
  :: d_step { claimed == p && orphan && !taken -> taken = 1; printf("passive %d: reads that an earlier process of it has claimed\n", p) } \
  :: d_step { claimed == p && taken && TAKE_UP(p) -> start(p) } \
  :: d_step { !crashed && restarts < RESTARTS -> restarts++; \
       promised[p] = 0; owe[p] = SIGHT; wait[p] = (key -> 0 : ABSENCE_WAIT); mine[p] = 0; \
       printf("passive %d: restarts\n", p) }

#define DEC(x) x = (x > 0 -> x - 1 : 0)
#define AGE(r) if :: age[r] < P -> age[r]++ :: else fi; if :: age[r] == P -> answers[r] = 0 :: else fi

inline tick() {
  DEC(val); DEC(vp); DEC(vs);
  DEC(promised[0]); DEC(promised[1]); DEC(owe[0]); DEC(owe[1]); DEC(wait[0]); DEC(wait[1]);
#if N == 3
  DEC(promised[2]); DEC(owe[2]); DEC(wait[2]);
#endif
  AGE(0);
#if ROUNDS == 2
  AGE(1);
#endif
  if :: renewal != 0 -> rage++; if :: rage >= V -> renewal = 0; rage = 0 :: else fi :: else fi;
  if :: crashed -> late++ :: else fi;
  printf("tick; the holder is valid for %d\n", val)
}

active proctype world() {
  atomic {
    age[0] = P;
#if ROUNDS == 2
    age[1] = P;
#endif
    rdebt = V; owe[0] = V; owe[1] = V;
#if N == 3
    owe[2] = V;
#endif
    skip
  }
  do
  :: started -> break
#ifdef REACH_ROUND
  :: d_step { hmode == PEER && hlist == 3 && change == NOTHING && val == P -> assert(false) }
#endif
#ifdef REACH_LIST
  :: d_step { hmode == PEER && hlist == 1 && change == NOTHING && val == P && changes > 1 -> assert(false) }
#endif
#ifdef REACH_BACK
  :: d_step { hmode == STORE && changes > 1 && change == NOTHING && val == V -> assert(false) }
#endif
#ifdef REACH_ALONE
  :: d_step { !key && drops > 0 && hmode == PEER && val == P && vs == 0 && change == NOTHING -> assert(false) }
#endif
#ifdef REACH_REBOUND
  :: d_step { key && drops > 0 && hmode == PEER && val > 0 && change == NOTHING -> assert(false) }
#endif
#ifdef REACH_ORPHAN
  :: d_step { orphan && taken -> assert(false) }
#endif
#if !defined(LIVENESS) && !defined(REACH_START) && !defined(REACH_ORPHAN) && !defined(MUT_NOT_STICKY) && !defined(MUT_REBIND)
  :: val == 0 -> break       /* nothing can go wrong any more */
#endif

  /* The holder. */
  ROUND(0)
  ANSWER(0, 0)
  ANSWER(1, 0)
#if N == 3
  ANSWER(2, 0)
#endif
#if ROUNDS == 2
  ROUND(1)
  ANSWER(0, 1)
  ANSWER(1, 1)
#if N == 3
  ANSWER(2, 1)
#endif
#endif
  CHANGE(STORE, 0)
  CHANGE(PEER, 1)
  CHANGE(PEER, 2)
  CHANGE(PEER, 3)
#if N == 3
  CHANGE(PEER, 4)
  CHANGE(PEER, 6)
  CHANGE(PEER, 7)
#endif
  :: d_step { change == SENT && claimed == N ->
       rmode = cmode; rlist = clist; rdebt = cdebt; NEW_VERSION; change = WRITTEN;
       printf("store: the change is written\n") }
  :: d_step { HOLDS && change == WRITTEN -> adopt(); printf("holder: knows that the change is written\n") }
#ifdef MUT_READ_OLD
  :: d_step { HOLDS && change == SENT && !deluded -> deluded = 1; printf("holder: takes the change for refused\n") }
#endif
  :: d_step { HOLDS && renewal == 0 && STORE_COUNTS -> renewal = 1; rage = 0; printf("holder: sends a renewal\n") }
  :: d_step { renewal == 1 && key && claimed == N -> renewal = 2 }
  :: d_step { HOLDS && renewal == 2 -> extend(0, V - rage); renewal = 0; rage = 0;
       printf("holder: the renewal is acknowledged, valid for %d\n", val) }
#ifdef FAILSAFE
  /* Rule 7. */
  :: d_step { HOLDS && !key && !rebind && change == NOTHING -> rebind = 1; rebindok = 1; printf("holder: sends a rebinding\n") }
  :: d_step { rebind ->
       if
#ifdef MUT_REBIND
       :: true -> assert(claimed == N); key = 1
#else
       :: rebindok -> key = 1; ABSENT(0); NEW_VERSION; printf("store: the role key is bound anew\n")
       :: !rebindok -> printf("store: the rebinding is refused\n")
#endif
       fi; rebind = 0; rebindok = 0 }
#endif
#ifdef LIVENESS
  :: d_step { HOLDS -> crashed = 1; printf("the holder's host crashes\n") }
  :: d_step { crashed && key && claimed == N && rmode == STORE -> key = 0; ABSENT(ABSENCE_WAIT); printf("store: the dead holder's lease ends\n") }
#endif

#ifdef MUT_ANY_VERSION
#define READ(p) \
  :: d_step { view[p] != (rmode == PEER && (rlist & BIT(p)) != 0) -> view[p] = !view[p]; owe[p] = rdebt; printf("passive %d: reads\n", p) }
  READ(0)
  READ(1)
#endif
  PASSIVE(0)
  PASSIVE(1)
#if N == 3
  PASSIVE(2)
#endif
  :: d_step { key && claimed == N && drops < DROPS && !crashed -> drops++; key = 0; ABSENT(ABSENCE_WAIT); printf("store: the role key vanishes\n") }

  :: d_step { !crashed -> tick() }
  :: else -> d_step { tick(); assert(late <= TAKEOVER) }
  od
}
