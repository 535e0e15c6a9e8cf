/*
 * Lease and debt: claims, renewals, releases, hand-overs, jumps of the term, restarts, a store that
 * drops a lease early or is restored from a backup.
 *
 * A sidecar may stall for any time between any two steps, so a frozen one needs no state of its own.
 * Its guard ends the program at the end of the validity, whatever the sidecar does. A restarted
 * sidecar keeps only its disk. With -DBEAT the reigns beat, and may be claimed on silence.
 *
 * A passive that is not cut off sees every change at once: the worst case for safety, because its
 * waits begin as early as they can, and its claim may still come at any later time.
 *
 * Never two: when a program starts, no other runs.
 * Always back: with -DLIVENESS, node 0's host crashes at any moment, and then node 1's program starts
 * within TAKEOVER ticks of the end of the lease.
 */

#ifndef N
#define N 2
#endif
#ifndef V
#define V 2            /* validity */
#endif
#ifdef MUT_SHORT_SILENCE
#define S (V - 1)
#else
#define S V            /* silence, with BEAT */
#endif
#ifndef CLAIMS
#define CLAIMS 3       /* claims, hand-overs and jumps in all */
#endif
#ifndef DROPS
#define DROPS 1        /* how often the store drops a lease early, or somebody deletes the role key */
#endif
#ifndef RESTARTS
#define RESTARTS 1
#endif
#ifndef CUTS
#define CUTS 0         /* how often a node is cut off from the store */
#endif
#ifndef SUSPENDS
#define SUSPENDS 0     /* how often a host sleeps */
#endif
#ifndef RESTORES
#define RESTORES 0     /* whether the store is restored from a backup */
#endif
#ifndef TAKEOVER
#define TAKEOVER V
#endif

/* The store. */
byte holder = N;       /* the role key is bound to this node's lease; N: it is absent */
bit clean = 1;         /* the term record: the last reign ended clean */
byte debt;             /* how long an earlier holder may still act */
byte term;
bit identity;          /* of the store: another after it was restored */
bit backed; byte bholder = N; bit bclean; byte bdebt, bterm;

/* The nodes. */
#define PASSIVE   0
#define CLAIMING  1    /* a claim is on its way */
#define INHERITED 2    /* the role key is ours, but no proof counts yet */
#define HOLDING   3
byte phase[N];
byte val[N];           /* the remaining validity */
bit runs[N];            /* the program runs */
byte owe[N];           /* the remaining debt, as this node knows it */
bit mine[N];           /* the claim on its way was sent by this process */
bit same[N];           /* nothing that the claim compares has changed */
byte pays[N];          /* the debt that the claim passes on */
byte renewal[N], age[N]; /* 1 sent, 2 answered: bound, 3 answered: not bound */
bit known[N];          /* the identity of the store, on the node's disk */
byte high[N];          /* the highest term seen, on the node's disk */
bit leaving[N];        /* a release is on its way, */
bit unread[N];         /* the record has not changed since it was sent, */
byte gives[N];         /* and this is the debt that it passes on */
bit left[N];           /* the disk: a release of this reign was sent */
bit reign[N];          /* the identity of the store in which the reign began */
bit cut[N];
#ifdef BEAT
byte silence[N];       /* the remaining silence until a claim is allowed */
#endif
byte sleeping = N;     /* the node whose host sleeps */

byte claims, drops, restarts, cuts, suspends, restores;
bit crashed; byte late;

#define MAX(a, b) (a > b -> a : b)
#define DEC(x) x = (x > 0 -> x - 1 : 0)

#ifdef MUT_NO_WAIT
#define UNCLEAN 0
#else
#define UNCLEAN V
#endif

#ifdef MUT_NO_IDENTITY
#define RESTORED(i) (term < high[i])
#else
#ifdef MUT_NO_DISK
#define RESTORED(i) (identity != known[i] && !fresh[i])
bit fresh[N];
#else
#define RESTORED(i) (identity != known[i] || term < high[i])
#endif
#endif

/* What a node must wait out when it first sees this record, or this vacancy. */
#define SIGHT(i) MAX(debt, (holder == N && !clean || RESTORED(i) -> UNCLEAN : 0))
#ifdef MUT_OLD_SIGHT
#define SEE(i) skip
#else
#define SEE(i) if :: !cut[i] -> owe[i] = SIGHT(i); NOTE(i) :: else fi
#endif
/* The identity on disk changes only after the wait for it: a restart would forget the rest. */
#ifdef MUT_NOTED_EARLY
#define NOTE(i) known[i] = identity; high[i] = MAX(high[i], term)
#define NOTED(i) skip
#else
#define NOTE(i) high[i] = MAX(high[i], term)
#define NOTED(i) if :: owe[i] == 0 && !cut[i] -> known[i] = identity :: else fi
#endif

/* A vacancy begins a wait, and does not shorten one that is under way. */
#define VACANT(i) if :: !cut[i] -> owe[i] = MAX(owe[i], UNCLEAN) :: else fi
#ifdef BEAT
#define HEAR(i) silence[i] = S
#else
#define HEAR(i) skip
#endif
#if N == 2
#define EACH(f) f(0); f(1)
#define DIFFER same[0] = 0; same[1] = 0
#define REWRITTEN unread[0] = 0; unread[1] = 0
#define OTHERS(i) (runs[1 - (i)] && sleeping != 1 - (i))
#else
#define EACH(f) f(0); f(1); f(2)
#define DIFFER same[0] = 0; same[1] = 0; same[2] = 0
#define REWRITTEN unread[0] = 0; unread[1] = 0; unread[2] = 0
#define OTHERS(i) (runs[((i) + 1) % 3] && sleeping != ((i) + 1) % 3 || runs[((i) + 2) % 3] && sleeping != ((i) + 2) % 3)
#endif

/* The writer i of a new version knows its debt better than the record does. */
inline written(i) {
  own = owe[i]; EACH(SEE); owe[i] = own; own = 0; NOTE(i);
  EACH(HEAR); DIFFER; REWRITTEN
}
byte own;

#ifdef MUT_NOT_STICKY
#define REVIVES(i) true
#define NO_RENEWAL(i) skip
#else
#define REVIVES(i) (phase[i] == INHERITED || val[i] > 0)
#define NO_RENEWAL(i) renewal[i] = 0; age[i] = 0
#endif
inline stop(i) { runs[i] = 0; val[i] = 0; phase[i] = PASSIVE; NO_RENEWAL(i) }

#define ALIVE(i) (!crashed || i != 0)
#define UP(i) (ALIVE(i) && sleeping != i && !cut[i])

#ifdef MUT_DEBT_CLAIM
#define CARRIES(i) 0
#else
#define CARRIES(i) owe[i]
#endif
#ifdef MUT_DEBT_RELEASE
#define RELEASES(i) 0
#else
#define RELEASES(i) owe[i]
#endif
#ifdef MUT_DEBT_JUMP
#define JUMPS(i) 0
#else
#define JUMPS(i) owe[i]
#endif
#ifdef MUT_DEBT_HANDOVER
#define HANDS(i) true
#else
#define HANDS(i) (owe[i] == 0)
#endif
#ifdef MUT_START_IN_DEBT
#define PAID(i) true
#else
#define PAID(i) (owe[i] == 0)
#endif
#ifdef MUT_BLIND_CLAIM
#define COMPARES(i) true
#else
#define COMPARES(i) same[i]
#endif
#ifdef MUT_FROM_REPLY
#define WORTH(i) V
#else
#define WORTH(i) (V - age[i])
#endif
#ifdef MUT_PROOF_LEASE
#define PROVED(i) true
#else
#ifdef MUT_INHERIT
#define PROVED(i) (holder == i || phase[i] == INHERITED)
#else
#ifdef MUT_PROOF_ANYWHERE
#define PROVED(i) (holder == i)
#else
#define PROVED(i) (holder == i && reign[i] == identity)
#endif
#endif
#endif
#ifdef MUT_TAKE_UP_LEFT
#define LEFT(i) (left[i] && since[i])
bit since[N];          /* the current process sent it */
#define SENT_BY(i, was) since[i] = was
#else
#define LEFT(i) left[i]
#define SENT_BY(i, was) skip
#endif
#ifdef MUT_RELEASE_FIRST
#define MAY_RELEASE(i) true
#else
#define MAY_RELEASE(i) !runs[i]
#endif

#ifdef BEAT
#define SILENT(i) (holder != N && holder != i && silence[i] == 0)
#else
#define SILENT(i) false
#endif
#ifdef MUT_BEAT_SKIPPED
#define BEATS skip
#else
#ifdef MUT_SILENCE_BLIND
#define BEATS EACH(HEAR)
#else
#ifdef BEAT
#define BEATS EACH(HEAR); DIFFER
#else
#define BEATS skip
#endif
#endif
#endif
#ifdef MUT_RESTART
#define FIRST(i) 0
#else
#define FIRST(i) SIGHT(i)
#endif
#ifdef MUT_NO_DISK
#define FORGET(i) high[i] = 0; fresh[i] = 1
#define ASSERT_TERM(i) assert(term >= truth[i]); truth[i] = term
byte truth[N];         /* the highest term that this node ever claimed */
#else
#define FORGET(i) skip
#define ASSERT_TERM(i) skip
#endif

#define NODE(i) \
  /* A claim: absent as read, or silent as read; the debt goes with it. */ \
  :: d_step { UP(i) && phase[i] == PASSIVE && claims < CLAIMS && (holder == N || SILENT(i)) -> \
       phase[i] = CLAIMING; same[i] = 1; mine[i] = 1; pays[i] = CARRIES(i); claims++; \
       printf("%d: sends a claim; debt %d\n", i, pays[i]) } \
  :: d_step { phase[i] == CLAIMING && sleeping != i -> \
       if :: COMPARES(i) -> \
            holder = i; clean = 0; debt = pays[i]; term = MAX(term, high[i]) + 1; ASSERT_TERM(i); \
            phase[i] = INHERITED; left[i] = 0; reign[i] = identity; val[i] = 0; written(i); \
            if :: !mine[i] -> owe[i] = MAX(owe[i], FIRST(i)) :: else fi; \
            printf("store: the claim of %d is written: term %d, debt %d\n", i, term, debt) \
          :: else -> phase[i] = PASSIVE; printf("store: the claim of %d is refused\n", i) \
       fi; same[i] = 0; pays[i] = 0; mine[i] = 0 } \
  /* An earlier process of ours claimed, and ended before or after the claim was written. */ \
  :: d_step { UP(i) && phase[i] == PASSIVE && holder == i && !(LEFT(i)) && !crashed -> phase[i] = INHERITED; reign[i] = identity; printf("%d: takes its reign up again\n", i) } \
  :: d_step { UP(i) && phase[i] >= INHERITED && renewal[i] == 0 && val[i] < V -> renewal[i] = 1; age[i] = 0; printf("%d: sends a renewal\n", i) } \
  :: d_step { renewal[i] == 1 -> \
       if :: PROVED(i) -> renewal[i] = 2; if :: holder == i -> BEATS :: else fi \
          :: else -> renewal[i] = 3 fi } \
  :: d_step { ALIVE(i) && sleeping != i && renewal[i] == 2 -> \
       if :: REVIVES(i) -> phase[i] = HOLDING; val[i] = MAX(val[i], WORTH(i)) :: else fi; \
       renewal[i] = 0; age[i] = 0; printf("%d: is valid for %d\n", i, val[i]) } \
  :: d_step { ALIVE(i) && sleeping != i && renewal[i] == 3 -> stop(i); renewal[i] = 0; age[i] = 0; printf("%d: has lost its lease, and stops\n", i) } \
  :: d_step { ALIVE(i) && sleeping != i && phase[i] == HOLDING && !runs[i] && val[i] > 0 && PAID(i) -> \
       printf("%d: starts its program\n", i); runs[i] = 1; assert(!OTHERS(i)); STARTED(i) } \
  /* Release: the program is gone. It may arrive at any later time; the intent is on disk first. */ \
  :: d_step { UP(i) && phase[i] >= INHERITED && !leaving[i] && MAY_RELEASE(i) && !crashed -> \
       leaving[i] = 1; unread[i] = 1; left[i] = 1; SENT_BY(i, 1); gives[i] = RELEASES(i); phase[i] = PASSIVE; NO_RENEWAL(i); KEEP(i); \
       printf("%d: sends a release; debt %d\n", i, gives[i]) } \
  :: d_step { UP(i) && phase[i] == PASSIVE && holder == i && left[i] && !leaving[i] -> \
       leaving[i] = 1; unread[i] = 1; gives[i] = RELEASES(i); printf("%d: sends its release again; debt %d\n", i, gives[i]) } \
  :: d_step { leaving[i] -> \
       if :: holder == i && unread[i] -> \
            holder = N; clean = 1; debt = gives[i]; written(i); printf("store: the release of %d is written; debt %d\n", i, debt) \
          :: else -> printf("store: the release of %d is refused\n", i) \
       fi; leaving[i] = 0; unread[i] = 0; gives[i] = 0 } \
  :: d_step { UP(i) && phase[i] == HOLDING && runs[i] && !crashed -> runs[i] = 0; printf("%d: stops its program\n", i) } \
  /* The repository has a higher term. */ \
  :: d_step { UP(i) && holder == i && phase[i] == HOLDING && !runs[i] && claims < CLAIMS && !crashed -> \
       claims++; term++; debt = JUMPS(i); written(i); printf("%d: jumps to term %d; debt %d\n", i, term, debt) } \
  :: d_step { !crashed && restarts < RESTARTS && sleeping != i -> \
       restarts++; mine[i] = 0; SENT_BY(i, 0); runs[i] = 0; val[i] = 0; renewal[i] = 0; age[i] = 0; FORGET(i); \
       if :: phase[i] != CLAIMING -> phase[i] = PASSIVE :: else fi; \
       if :: !cut[i] -> owe[i] = FIRST(i); NOTE(i) :: else -> owe[i] = 0 fi; HEAR(i); \
       printf("%d: restarts, what was left of its program is ended; owes %d\n", i, owe[i]) } \
  :: d_step { !crashed && CUTS > 0 && cuts < CUTS && !cut[i] -> cuts++; cut[i] = 1; printf("%d: is cut off\n", i) } \
  :: d_step { CUTS > 0 && cut[i] && (sleeping != i) -> cut[i] = 0; HEAL(i); HEAR(i); printf("%d: is connected again; owes %d\n", i, owe[i]) } \
  :: d_step { SUSPENDS > 0 && suspends < SUSPENDS && sleeping == N && !crashed -> suspends++; sleeping = i; printf("host %d sleeps\n", i) } \
  :: d_step { SUSPENDS > 0 && sleeping == i -> sleeping = N; \
       if :: val[i] == 0 && phase[i] == HOLDING -> stop(i) :: else fi; \
       assert(!(runs[i] && OTHERS(i))); printf("host %d wakes\n", i) } \
  /* The lease of a holder that no longer renews ends. */ \
  :: d_step { holder == i && (phase[i] == PASSIVE || i == 0 && crashed) -> vanish() }

#ifdef MUT_OLD_SIGHT
#define HEAL(i) NOTE(i)
#else
#define HEAL(i) owe[i] = MAX(SIGHT(i), (phase[i] >= INHERITED -> owe[i] : 0)); NOTE(i)
#endif
#ifdef MUT_RELEASE_FIRST
#define KEEP(i) skip
#else
#define KEEP(i) val[i] = 0
#endif
#ifdef REACH_DEPOSED
#define STARTED(i) assert(!(claims == CLAIMS && drops == DROPS))
#else
#ifdef REACH_PAID
#define STARTED(i) assert(!(debt > 0))
#else
#define STARTED(i) if :: i == 1 -> late = 0 :: else fi
#endif
#endif

inline vanish() {
  holder = N; clean = 0; EACH(VACANT); DIFFER;
  printf("store: the role key vanishes\n")
}

#define HANDOVER(i, j) \
  :: d_step { UP(i) && holder == i && phase[i] == HOLDING && !runs[i] && HANDS(i) && UP(j) && phase[j] == PASSIVE && claims < CLAIMS && !crashed -> \
       claims++; holder = j; clean = 0; debt = 0; term++; phase[i] = PASSIVE; val[i] = 0; renewal[i] = 0; age[i] = 0; \
       phase[j] = INHERITED; left[j] = 0; reign[j] = identity; val[j] = 0; owe[j] = 0; written(i); owe[j] = 0; \
       printf("%d: hands its reign over to %d\n", i, j) }

#ifdef MUT_LATE_STOP
#define GUARD(i) if :: val[i] == 0 && runs[i] && sleeping != i -> stop(i) :: else fi; DEC(val[i])
#else
#ifdef MUT_MONOTONIC
#define GUARD(i) if :: sleeping != i -> DEC(val[i]) :: else fi; if :: val[i] == 0 && phase[i] == HOLDING && sleeping != i -> stop(i) :: else fi
#else
#define GUARD(i) DEC(val[i]); if :: val[i] == 0 && phase[i] == HOLDING && sleeping != i -> stop(i) :: else fi
#endif
#endif
#ifdef BEAT
#define QUIET(i) DEC(silence[i])
#else
#define QUIET(i) skip
#endif
#define PASS(i) GUARD(i); DEC(owe[i]); NOTED(i); QUIET(i); \
  if :: renewal[i] != 0 -> age[i]++; if :: age[i] >= V -> renewal[i] = 0; age[i] = 0 :: else fi :: else fi

inline tick() {
  EACH(PASS);
  if :: crashed && !(phase[1] == HOLDING && runs[1]) -> late++ :: else fi;
  printf("tick\n")
}

active proctype world() {
  do
  NODE(0)
  NODE(1)
#if N == 3
  NODE(2)
#endif
  HANDOVER(0, 1)
  HANDOVER(1, 0)
#if N == 3
  HANDOVER(0, 2)
  HANDOVER(2, 0)
  HANDOVER(1, 2)
  HANDOVER(2, 1)
#endif
  :: d_step { holder != N && drops < DROPS && !crashed -> drops++; vanish() }
#ifdef MUT_NO_NONCE
  :: d_step { UP(0) && phase[0] == CLAIMING && val[0] == 0 -> phase[0] = HOLDING; val[0] = V; printf("0: takes the time-out for a win\n") }
#endif
#ifdef MUT_ERROR_IS_LOSS
  :: d_step { phase[0] == HOLDING && renewal[0] == 1 -> printf("0: an error; takes it for a loss\n"); assert(holder != 0); stop(0) }
#endif
#if RESTORES > 0
  :: d_step { !backed -> backed = 1; bholder = holder; bclean = clean; bdebt = debt; bterm = term; printf("store: a backup is made\n") }
  :: d_step { backed && restores < RESTORES && (term != bterm || holder != bholder) -> restores++;
       holder = bholder; clean = bclean; debt = bdebt; term = bterm; identity = 1; DIFFER; REWRITTEN; EACH(SEE); EACH(HEAR);
       printf("store: restored, term %d\n", term) }
#endif
#ifdef LIVENESS
  :: d_step { !crashed && cut[1] == 0 && sleeping == N && claims < CLAIMS -> crashed = 1; claims = 0; runs[0] = 0; printf("host 0 crashes\n") }
#endif
#ifdef REACH_HELD
  :: d_step { holder == N && runs[0] && owe[1] > 0 && phase[1] == CLAIMING -> assert(false) }
#endif
#ifdef REACH_RELEASED
  :: d_step { holder == N && clean && debt > 0 && runs[0] -> assert(false) }
#endif
#ifdef REACH_RESTORED
  :: d_step { restores > 0 && runs[0] && owe[1] > 0 && phase[1] == INHERITED -> assert(false) }
#endif
  :: d_step { !crashed -> tick() }
  :: else -> d_step { tick(); assert(late <= TAKEOVER) }
  od
}
