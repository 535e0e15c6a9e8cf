/*
 * Adoption: a process of ctl-a is killed or frozen at any step and another is started on the same
 * state directory, with another configuration; ctl-b takes over when the store lets it.
 *
 * The guard of ctl-a ends its program at the end of the last validity that it received. Two
 * configurations differ in the validity and in whether a reign beats.
 *
 * Never two: a program starts only when no other runs, on either host. And a program runs under the
 * reign that it was started for, because its secret and its term are that reign's.
 */

#ifndef SHORT
#define SHORT 2
#endif
#ifndef LONG
#define LONG 3
#endif
#ifndef REIGNS
#define REIGNS 2
#endif
#ifndef PROCESSES
#define PROCESSES 3    /* started in all */
#endif
#ifndef DROPS
#define DROPS 1
#endif
#ifndef TAKEOVER
#define TAKEOVER LONG
#endif

#define NOBODY 0
#define A 1
#define B 2

/* The store. */
byte holder;
byte nonce;            /* of a's last reign */
byte rvalid;           /* its terms, in the term record */
bit rbeat;

/* The host of a: its guard, its program, its disk. */
byte val;              /* how much longer the guard lets the program run */
byte programs;
byte under;            /* the reign that the program was started for */
byte disk;             /* the reign on the disk */
byte lock = 2;         /* the process that holds the state directory; 2: none */

/* Two processes of a at a time. */
#define DEAD 0
#define IDLE 1
#define HOLD 2
byte st[2], valid[2];  /* and the validity that it uses */
bit config[2];         /* 1: long, without a beat; 0: short, with a beat */
bit beats[2];
bit found[2];          /* it has found no program to adopt, and is about to start one */
byte renewal[2], age[2];
byte started, drops;

/* ctl-b. */
byte owe, silence;
bit bconfig, bruns;
bit crashed; byte late;

#define CONFIGURED(k) (config[k] -> LONG : SHORT)
#define DEC(x) x = (x > 0 -> x - 1 : 0)
#define MAX(a, b) (a > b -> a : b)

#ifdef MUT_OWN_VALIDITY
#define TERMS_VALID(k) CONFIGURED(k)
#else
#define TERMS_VALID(k) rvalid
#endif
#ifdef MUT_OWN_BEAT
#define TERMS_BEAT(k) (!config[k])
#else
#define TERMS_BEAT(k) rbeat
#endif
#ifdef MUT_TAKER_VALIDITY
#define WAIT (bconfig -> LONG : SHORT)
#else
#define WAIT rvalid
#endif
#ifdef MUT_TAKER_SILENCE
#define SILENCE SHORT
#define BY_SILENCE true
#else
#define SILENCE rvalid
#define BY_SILENCE rbeat
#endif
#ifdef MUT_NO_LOCK
#define LOCKED false
#else
#define LOCKED (lock != 2)
#endif
#ifdef MUT_ADOPT_DATES
#define DATE(k) val = MAX(val, valid[k])
#else
#define DATE(k) skip
#endif
#ifdef MUT_NAME
#define MATCHES true
#else
#define MATCHES (under == nonce)
#endif
#define BOUND (holder == A && disk == nonce)

inline vanish() { holder = NOBODY; owe = MAX(owe, WAIT); printf("store: the role key vanishes\n") }

#define PROCESS(k) \
  :: d_step { !crashed && st[k] == DEAD && !LOCKED && started < PROCESSES -> st[k] = IDLE; lock = k; started++; config[k] = 0; printf("a%d: begins, short\n", k) } \
  :: d_step { !crashed && st[k] == DEAD && !LOCKED && started < PROCESSES -> st[k] = IDLE; lock = k; started++; config[k] = 1; printf("a%d: begins, long\n", k) } \
  :: d_step { !crashed && st[k] != DEAD -> st[k] = DEAD; valid[k] = 0; config[k] = 0; beats[k] = 0; found[k] = 0; renewal[k] = 0; age[k] = 0; \
       if :: lock == k -> lock = 2 :: else fi; printf("a%d: is killed\n", k) } \
  /* A new reign: the nonce is on the disk before the claim is sent. */ \
  :: d_step { st[k] == IDLE && holder == NOBODY && nonce < REIGNS && !bruns && !crashed -> \
       nonce++; disk = nonce; holder = A; rvalid = CONFIGURED(k); rbeat = !config[k]; silence = rvalid; \
       st[k] = HOLD; valid[k] = rvalid; beats[k] = rbeat; printf("a%d: claims reign %d\n", k, nonce) } \
  /* Adoption. */ \
  :: d_step { st[k] == IDLE && holder != B && BOUND && !crashed -> \
       st[k] = HOLD; valid[k] = TERMS_VALID(k); beats[k] = TERMS_BEAT(k); DATE(k); printf("a%d: takes reign %d up, validity %d\n", k, nonce, valid[k]) } \
  :: d_step { st[k] == HOLD && renewal[k] == 0 && val < valid[k] && !crashed -> renewal[k] = 1; age[k] = 0; printf("a%d: sends a renewal\n", k) } \
  :: d_step { renewal[k] == 1 -> \
       if :: holder == A -> renewal[k] = 2; if :: beats[k] -> silence = SILENCE :: else fi \
          :: else -> renewal[k] = 3 fi } \
  :: d_step { renewal[k] == 2 && !crashed && (programs == 0 || MATCHES) -> \
       assert(programs == 0 || under == nonce); \
       val = MAX(val, valid[k] - age[k]); renewal[k] = 0; age[k] = 0; printf("a%d: valid for %d\n", k, val) } \
  :: d_step { renewal[k] == 3 && !crashed -> programs = 0; val = 0; st[k] = IDLE; valid[k] = 0; beats[k] = 0; found[k] = 0; renewal[k] = 0; age[k] = 0; printf("a%d: has lost, and stops\n", k) } \
  :: d_step { st[k] == HOLD && programs > 0 && under != nonce && !MATCHES && !crashed -> programs = 0; under = 0; printf("a%d: ends the program of an earlier reign\n", k) } \
  :: d_step { st[k] == HOLD && programs == 0 && !found[k] && !crashed -> found[k] = 1; printf("a%d: finds no program\n", k) } \
  :: d_step { st[k] == HOLD && found[k] && val > 0 && !crashed -> \
       found[k] = 0; programs++; under = nonce; printf("a%d: starts the program under reign %d\n", k, nonce); \
       assert(programs == 1 && !bruns); REACHED }

#ifdef REACH_ADOPTED
#define REACHED skip
#else
#ifdef REACH_SECOND
#define REACHED assert(nonce < 2)
#else
#define REACHED skip
#endif
#endif

inline tick() {
  DEC(val); DEC(owe); DEC(silence);
  if :: val == 0 -> programs = 0; under = 0 :: else fi;
  if :: renewal[0] != 0 -> age[0]++; if :: age[0] >= LONG || age[0] >= valid[0] -> renewal[0] = 0; age[0] = 0 :: else fi :: else fi;
  if :: renewal[1] != 0 -> age[1]++; if :: age[1] >= LONG || age[1] >= valid[1] -> renewal[1] = 0; age[1] = 0 :: else fi :: else fi;
  if :: crashed -> late++ :: else fi;
  printf("tick; the program of a may run for %d\n", val)
}

active proctype world() {
  d_step { valid[0] = 0; printf("begin\n") }
  if :: bconfig = 0 :: bconfig = 1 fi;
  do
  :: bruns -> break
  PROCESS(0)
  PROCESS(1)
  :: d_step { holder == A && drops < DROPS && !crashed -> drops++; vanish() }
  :: d_step { holder == A && st[0] != HOLD && st[1] != HOLD -> vanish() }
  /* b: an absent role key is waited out, a silent one may be overwritten at once. */
  :: d_step { holder == NOBODY && nonce > 0 && owe == 0 -> holder = B; bruns = 1; printf("b: starts after a vacancy\n"); assert(programs == 0) }
  :: d_step { holder == A && BY_SILENCE && silence == 0 && owe == 0 -> holder = B; bruns = 1; printf("b: starts after a silence\n"); assert(programs == 0) }
#ifdef REACH_ADOPTED
  :: d_step { started == 2 && st[0] == DEAD && st[1] == HOLD && programs == 1 && val == LONG && !config[1] -> assert(false) }
#endif
#ifdef REACH_SILENCE
  :: d_step { holder == A && BY_SILENCE && silence == 0 && owe == 0 && started == 2 && nonce == 2 -> assert(false) }
#endif
#ifdef LIVENESS
  :: d_step { !crashed && nonce > 0 -> crashed = 1; programs = 0; val = 0;
       st[0] = DEAD; st[1] = DEAD; renewal[0] = 0; renewal[1] = 0; age[0] = 0; age[1] = 0; printf("host a crashes\n") }
#endif
  :: d_step { !crashed -> tick() }
  :: else -> d_step { tick(); assert(late <= TAKEOVER) }
  od
}
