/*
 * The guard: one start of a program, by a sidecar that may be killed, frozen, thawed and restarted at
 * any step, under a guard that may be killed, frozen and thawed, and the verdict on the program
 * afterwards: gone, running, unknown. Then another host may start: at once after a clean release,
 * after V otherwise.
 *
 * A guard that is neither frozen nor dead acts at its deadline (the kernel runs it within its margin);
 * so does a sidecar that is neither frozen nor dead. Everything else may take any time.
 *
 * Nothing is released clean while the program's tree lives or may yet be started.
 * Never two: if at most one of guard and sidecar fails at the deadline, and the sidecar has a cgroup
 * or is the guard's parent, no other host starts while the tree lives.
 * Always back: with -DLIVENESS, once the faults are over, within TAKEOVER ticks the program runs under
 * a sidecar that knows it, or another host starts.
 */

#ifndef V
#define V 2
#endif
#ifndef FAULTS
#define FAULTS 2
#endif
#ifndef RENEWALS
#define RENEWALS 3
#endif
#ifndef TAKEOVER
#define TAKEOVER (2 * V)
#endif

/* The sidecar. */
#define DEAD    0
#define BEGUN   1      /* does not know what an earlier process left */
#define FREE    2      /* knows that nothing runs */
#define INTENT  3      /* what it is about to start is on the disk */
#define ASKED   4      /* has started the guard */
#define RUNNING 5      /* the guard has reported the start */
#define TOLD    6      /* has told the guard to stop */
#define UNKNOWN 7      /* the verdict is unknown; waits */
#define OVER    8      /* has released */
byte sidecar = FREE;
bit sfrozen, adopted;  /* adopted: the guard is not its child */
byte lease = V;        /* the remaining validity */
byte unknown;          /* the remaining wait of UNKNOWN */
bit disk;              /* something may have been started */

/* The guard and its pipe. */
#define NOGUARD 0
#define READY   1      /* has not started the program yet */
#define FORKED  2
#define KILLED  3
#define DONE    4      /* has ended the tree, and reported it */
byte guard;
bit deaf;              /* its socket is not open yet */
bit gfrozen;
byte deadline;
byte pipe;             /* an unread extension: an instant, so it ages */
bit order;             /* an unread stop */

/* The program's tree. */
bit main, daemon;

/* The others. */
bit vacant;            /* the role key is gone */
bit cleanly;
byte others;           /* the remaining wait after an unclean end */
bit started;

byte faults, renewals, late;
bit calm, uncovered, spawned;

#define TREE (main || daemon)
#define DEC(x) x = (x > 0 -> x - 1 : 0)
#define MAX(a, b) (a > b -> a : b)
#define S_ACTS (sidecar != DEAD && !sfrozen)
#define G_ACTS ((guard == READY || guard == FORKED) && !gfrozen)
#define G_ANSWERS (G_ACTS && !deaf)

#ifdef MUT_PROCESS_GROUP
#define KILL_TREE main = 0
#else
#define KILL_TREE main = 0; daemon = 0
#endif
inline guard_ends() { KILL_TREE; guard = DONE; deaf = 0; pipe = 0; order = 0; deadline = 0; printf("guard: ends the tree\n") }

#ifdef MUT_NO_DEADLINE
#define PASSED false
#else
#ifdef MUT_NO_RECHECK
#define PASSED (deadline == 0 && guard == FORKED)
#else
#define PASSED (deadline == 0)
#endif
#endif
#ifdef MUT_NO_RECHECK
#define MAY_FORK true
#else
#define MAY_FORK (deadline > 0)
#endif
#ifdef MUT_RELATIVE
#define EXTENSION V
#else
#define EXTENSION pipe
#endif

/* Whether the sidecar can certainly end the tree by itself. */
#ifdef CGROUP
#define CAN_KILL true
#else
#define CAN_KILL !adopted
#endif
#ifdef MUT_NO_SUBREAPER
#define SIDECAR_KILLS false
#else
#define SIDECAR_KILLS (S_ACTS && sidecar >= ASKED && sidecar <= TOLD && CAN_KILL && (gfrozen || guard == KILLED))
#endif
inline sidecar_ends() {
  main = 0; daemon = 0; guard = DONE; deaf = 0; gfrozen = 0; pipe = 0; order = 0; deadline = 0; disk = 0;
  sidecar = FREE; printf("sidecar: ends guard and tree itself\n")
}

inline release(c) {
  if :: c -> printf("sidecar: releases clean\n"); assert(!TREE && guard != READY && guard != FORKED) :: else -> printf("sidecar: releases unclean\n") fi;
  vacant = 1; cleanly = c; others = (c -> 0 : V); sidecar = OVER; lease = 0
}

/* After a thaw, the guard checks its deadline before it reads the pipe. */
#ifdef MUT_RELATIVE
#define THAW if :: pipe > 0 -> deadline = V; pipe = 0 :: else fi; if :: PASSED -> guard_ends() :: else fi
#else
#define THAW if :: PASSED -> guard_ends() :: else fi
#endif

inline tick() {
  DEC(lease); DEC(deadline); DEC(pipe); DEC(unknown); DEC(others);
  if :: G_ACTS && PASSED -> guard_ends() :: else fi;
  if :: lease == 0 && SIDECAR_KILLS -> sidecar_ends() :: else fi;
  if :: lease == 0 && TREE && (gfrozen || guard == KILLED) && !(S_ACTS && sidecar >= ASKED && sidecar <= TOLD && CAN_KILL) -> uncovered = 1 :: else fi;
  if :: calm && !(sidecar == RUNNING && main) -> late++ :: else fi;
  printf("tick: lease %d, deadline %d\n", lease, deadline)
}

active proctype world() {
  do
  :: started -> break
#ifdef REACH_ADOPTED
  :: d_step { adopted && sidecar == RUNNING && main && lease == V && deadline == V -> assert(false) }
#endif
#ifdef REACH_UNKNOWN
  :: d_step { sidecar == UNKNOWN && TREE -> assert(false) }
#endif
#ifdef REACH_DEADLINE
  :: d_step { guard == DONE && sidecar == DEAD && vacant && spawned -> assert(false) }
#endif
#ifdef REACH_CLEAN
  :: d_step { spawned && vacant && cleanly -> assert(false) }
#endif

  /* The start: intent, guard, program, record. */
#ifdef MUT_LATE_RECORD
  :: d_step { S_ACTS && sidecar == FREE && !spawned && lease > 0 -> sidecar = INTENT }
  :: d_step { S_ACTS && sidecar == RUNNING && !disk && main -> disk = 1; printf("sidecar: writes its record\n") }
#else
  :: d_step { S_ACTS && sidecar == FREE && !spawned && lease > 0 -> disk = 1; sidecar = INTENT; printf("sidecar: writes its intent\n") }
#endif
  :: d_step { S_ACTS && sidecar == INTENT && lease > 0 -> guard = READY; deaf = 1; deadline = lease; sidecar = ASKED; adopted = 0; spawned = 1; printf("sidecar: starts the guard, deadline %d\n", deadline) }
  :: d_step { S_ACTS && sidecar == INTENT && lease == 0 -> disk = 0; sidecar = FREE }
  :: d_step { G_ACTS && deaf -> deaf = 0; printf("guard: listens\n") }
  :: d_step { G_ACTS && !deaf && guard == READY && MAY_FORK -> guard = FORKED; main = 1; printf("guard: starts the program\n") }
  :: d_step { main && !daemon && !calm -> daemon = 1; printf("program: leaves a daemon\n") }
  :: d_step { main && daemon && !calm -> main = 0; printf("program: its main process exits, the daemon stays\n") }
  :: d_step { S_ACTS && sidecar == ASKED && guard == FORKED && G_ANSWERS -> sidecar = RUNNING; printf("sidecar: learns that it runs\n") }

  /* Renewals reach the guard through the pipe, as an instant. */
  :: d_step { S_ACTS && (sidecar == RUNNING || sidecar == ASKED) && lease > 0 && lease < V && !vacant && (renewals < RENEWALS || calm) ->
       lease = V; pipe = V; if :: !calm -> renewals++ :: else fi; printf("sidecar: renews\n") }
  :: d_step { G_ACTS && pipe > 0 && deadline > 0 -> deadline = MAX(deadline, EXTENSION); pipe = 0; printf("guard: reads the extension, deadline %d\n", deadline) }

  /* The stop: told, done, confirmed; only then released. */
  :: d_step { S_ACTS && (sidecar == RUNNING || sidecar == ASKED) && G_ANSWERS && (!calm || lease == 0 || vacant || !main) -> order = 1; sidecar = TOLD; printf("sidecar: tells the guard to stop\n") }
  :: d_step { G_ACTS && order -> guard_ends() }
  :: d_step { S_ACTS && sidecar >= ASKED && sidecar <= TOLD && guard == DONE -> sidecar = FREE; disk = 0; printf("sidecar: the guard confirms that the tree is gone\n") }
#ifdef MUT_TOLD_IS_GONE
  :: d_step { S_ACTS && sidecar == TOLD -> sidecar = FREE; disk = 0 }
#endif
  :: d_step { S_ACTS && sidecar == FREE && !vacant && (spawned || calm && lease == 0) -> release(1) }

  /* The guard no longer answers. */
  :: d_step { S_ACTS && sidecar >= ASKED && sidecar <= TOLD && guard == KILLED && CAN_KILL -> sidecar_ends() }
  :: d_step { S_ACTS && sidecar >= ASKED && sidecar <= TOLD && (guard == KILLED || gfrozen) && !(CAN_KILL) -> sidecar = UNKNOWN; unknown = V; printf("sidecar: unknown\n") }
  :: d_step { S_ACTS && sidecar == UNKNOWN && unknown == 0 ->
#ifdef MUT_UNKNOWN_CLEAN
       sidecar = FREE
#else
       if :: !vacant -> release(0) :: else -> sidecar = OVER fi
#endif
     }
#ifdef MUT_UNKNOWN_GONE
  :: d_step { S_ACTS && sidecar == UNKNOWN -> sidecar = FREE }
#endif

  /* A new process finds out what the previous one left. */
  :: d_step { S_ACTS && sidecar == BEGUN && !disk -> sidecar = FREE; spawned = 1; printf("sidecar: nothing was left\n") }
#ifdef MUT_SILENT_IS_GONE
  :: d_step { S_ACTS && sidecar == BEGUN && disk && (guard == NOGUARD || deaf) -> disk = 0; sidecar = FREE; spawned = 1; printf("sidecar: an intent, no answer: gone\n") }
#else
  :: d_step { S_ACTS && sidecar == BEGUN && disk && (guard == NOGUARD || deaf && !gfrozen) -> sidecar = UNKNOWN; unknown = V; spawned = 1; printf("sidecar: an intent, no answer\n") }
#endif
  :: d_step { S_ACTS && sidecar == BEGUN && disk && G_ANSWERS -> adopted = 1; sidecar = (guard == FORKED -> RUNNING : ASKED);
       if :: !vacant -> lease = MAX(lease, deadline) :: else fi; printf("sidecar: adopts the guard\n") }
  :: d_step { S_ACTS && sidecar == BEGUN && disk && guard == DONE -> sidecar = FREE; disk = 0; printf("sidecar: the guard has reported that the tree is gone\n") }
#ifdef CGROUP
#ifdef MUT_EMPTY_IS_GONE
  :: d_step { S_ACTS && sidecar == BEGUN && disk && !TREE -> sidecar = FREE; disk = 0; printf("sidecar: the cgroup is empty\n") }
#endif
  :: d_step { S_ACTS && sidecar == BEGUN && disk && guard == KILLED -> main = 0; daemon = 0; sidecar = FREE; disk = 0; printf("sidecar: ends the cgroup\n") }
  :: d_step { S_ACTS && sidecar == BEGUN && disk && gfrozen -> sidecar = UNKNOWN; unknown = V; printf("sidecar: unknown\n") }
#else
  :: d_step { S_ACTS && sidecar == BEGUN && disk && (guard == KILLED || gfrozen) -> sidecar = UNKNOWN; unknown = V; printf("sidecar: unknown\n") }
#endif

  /* Faults. */
  :: d_step { !calm && faults < FAULTS && sidecar != DEAD && sidecar != OVER -> faults++; sidecar = DEAD; sfrozen = 0; unknown = 0; printf("the sidecar is killed\n") }
  :: d_step { sidecar == DEAD -> sidecar = BEGUN; adopted = 1; printf("a new sidecar begins\n") }
  :: d_step { !calm && faults < FAULTS && S_ACTS && sidecar != OVER -> faults++; sfrozen = 1; printf("the sidecar is frozen\n") }
  :: d_step { sfrozen -> sfrozen = 0; printf("the sidecar thaws\n") }
  :: d_step { !calm && faults < FAULTS && (guard == READY || guard == FORKED) -> faults++; guard = KILLED; deaf = 0; gfrozen = 0; pipe = 0; order = 0; deadline = 0; printf("the guard is killed\n") }
  :: d_step { !calm && faults < FAULTS && G_ACTS -> faults++; gfrozen = 1; printf("the guard is frozen\n") }
  :: d_step { gfrozen -> gfrozen = 0; THAW; printf("the guard thaws\n") }

  /* The others. */
  :: d_step { !vacant && (!calm || lease == 0 && (sidecar < ASKED || sidecar > RUNNING)) -> vacant = 1; cleanly = 0; others = V; printf("store: the role key vanishes\n") }
  :: d_step { S_ACTS && vacant && sidecar != OVER && lease > 0 -> lease = 0; printf("sidecar: has lost the lease\n") }
  :: d_step { vacant && others == 0 -> started = 1; printf("another starts\n"); assert(uncovered || !TREE && (guard != READY || deadline == 0 && !(MAY_FORK))) }

#ifdef LIVENESS
  :: d_step { !calm && spawned -> calm = 1; printf("calm\n") }
#endif
  :: d_step { !calm -> tick() }
  :: else -> d_step { tick(); assert(late <= TAKEOVER) }
  od
}
