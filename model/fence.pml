/*
 * The fence of the metadata repository: begin, drain, open.
 *
 * A term's sidecar begins it, and may stall between any two steps, for ever. Programs never end: once
 * started, a program knows its secret and may open sessions at any time. A session is modelled as the
 * server sees it: it reads the stored secret, proves that it knows it, passes the check of LOGIN, and
 * becomes visible in pg_stat_activity. From then on it may commit at any moment, because a COMMIT in
 * the send buffer of a dead client looks the same. A session that was told to end may still commit
 * before it ends.
 *
 * Never stale: no session of an older term commits once a newer term is open.
 */

#ifndef TERMS
#define TERMS 3
#endif
#ifndef SESSIONS
#define SESSIONS 2
#endif
#ifndef CHANGES
#define CHANGES 1      /* how often programs change their own password */
#endif

#define NONE     0
#define SCRAM    1     /* has read the stored secret; its virtual transaction shows in pg_locks */
#define KNOWN    2     /* has proved that it knows it */
#define STARTING 3     /* has passed the check of LOGIN */
#define VISIBLE  4     /* shows in pg_stat_activity, and may commit */

#define SELF 8         /* SELF+t: the secret that the program of term t set on its own role */

byte own[TERMS + 1];   /* term -> its controller, and so its role: 0 or 1 */
byte granted;          /* the terms up to this one have a holder in the election */
bool opened[TERMS + 1];
byte newest;           /* the highest term ever opened */

/* The repository. */
byte dbterm;
bool fencing;
bool login[2];
byte secret[2];

/* What the sidecar of the repository's term knows: the step of its drain, and what it waits for. */
#define IDLE    0
#define LOCKS   1      /* read the virtual transactions next */
#define ACTIVE  2      /* read the sessions next */
#define DRAINED 3
byte step;
byte pending;          /* the starting sessions, a bit each */
bool again;            /* pending is what an earlier call returned */
bool last;             /* this is the second pass */
bool found;            /* some call found sessions */
bool late[TERMS + 1];  /* mutants: a sidecar that opens without a second check */
#ifdef MUT_LATE_OPEN
bool sent;             /* a refused open of this term is under way */
#define SENT(x) sent = x
#else
#define SENT(x) skip
#endif

byte st[SESSIONS], who[SESSIONS], read[SESSIONS];
bool told[SESSIONS];   /* to end */
byte changes;
bool calm, resealed, raced, lost;

#ifdef MUT_SAME_SECRET
#define KNOWS(k) (read[k] != 0)
#else
#define KNOWS(k) (read[k] == who[k] || read[k] == SELF + who[k])
#endif

#define END(k) st[k] = NONE; who[k] = 0; read[k] = 0; told[k] = 0; pending = pending & ~(1 << k)

#define IS_STARTING(k) (st[k] >= SCRAM && st[k] <= STARTING)

#define SESSION(k) \
  :: atomic { !calm && st[k] == NONE && newest > 0 -> \
       if :: opened[1] -> who[k] = 1 :: opened[2] -> who[k] = 2 \
          :: TERMS > 2 && opened[3 % (TERMS + 1)] -> who[k] = 3 :: TERMS > 3 && opened[4 % (TERMS + 1)] -> who[k] = 4 fi; \
       read[k] = secret[own[who[k]]]; st[k] = SCRAM; \
       printf("session %d: a program of term %d connects, the stored secret is %d\n", k, who[k], read[k]) } \
  :: d_step { st[k] == SCRAM -> \
       if :: KNOWS(k) -> st[k] = KNOWN; printf("session %d: knows the secret\n", k) \
          :: !KNOWS(k) -> END(k); printf("session %d: refused, wrong secret\n", k) fi } \
  :: d_step { st[k] == KNOWN -> \
       if :: login[own[who[k]]] -> st[k] = STARTING; printf("session %d: may log in\n", k) \
          :: !login[own[who[k]]] -> END(k); printf("session %d: refused, NOLOGIN\n", k) fi } \
  :: d_step { st[k] == STARTING -> st[k] = VISIBLE; printf("session %d: visible\n", k) } \
  :: d_step { st[k] == VISIBLE && who[k] < newest -> \
       printf("session %d: COMMIT of term %d after term %d was opened\n", k, who[k], newest); assert(false) } \
  :: d_step { st[k] == VISIBLE && !opened[who[k]] -> \
       printf("session %d: COMMIT of term %d before it was opened\n", k, who[k]); assert(false) } \
  :: d_step { !calm && st[k] == VISIBLE && changes < CHANGES -> \
       changes++; secret[own[who[k]]] = SELF + who[k]; \
       if :: told[k] -> raced = 1 :: else fi; \
       printf("session %d: changes the secret of its role to its own\n", k) } \
  :: d_step { !calm && st[k] == VISIBLE && fencing && own[dbterm] == own[who[k]] && secret[own[dbterm]] == SELF + who[k] -> \
       secret[own[dbterm]] = dbterm; printf("session %d: has seen the verifier, and sets it back\n", k) } \
  :: d_step { st[k] == VISIBLE && (told[k] || calm) -> END(k); printf("session %d: ends\n", k) } \
  :: d_step { !calm && (st[k] == SCRAM || st[k] == VISIBLE && !told[k]) -> END(k); printf("session %d: leaves by itself\n", k) }

#if SESSIONS == 2
#define STARTINGS ((IS_STARTING(0) -> 1 : 0) | (IS_STARTING(1) -> 2 : 0))
#define VISIBLES  ((st[0] == VISIBLE -> 1 : 0) | (st[1] == VISIBLE -> 2 : 0))
#define TERMINATE told[0] = told[0] || st[0] == VISIBLE; told[1] = told[1] || st[1] == VISIBLE
#else
#define STARTINGS ((IS_STARTING(0) -> 1 : 0) | (IS_STARTING(1) -> 2 : 0) | (IS_STARTING(2) -> 4 : 0))
#define VISIBLES  ((st[0] == VISIBLE -> 1 : 0) | (st[1] == VISIBLE -> 2 : 0) | (st[2] == VISIBLE -> 4 : 0))
#define TERMINATE told[0] = told[0] || st[0] == VISIBLE; told[1] = told[1] || st[1] == VISIBLE; told[2] = told[2] || st[2] == VISIBLE
#endif

inline restart_drain() { step = LOCKS; pending = 0; again = 0; last = 0 }

/* begin, as one commit: the term by compare, NOLOGIN for all, the new secret, the others' void. */
inline begin(t) {
#ifdef MUT_LATE_SECRET
  login[0] = 0; login[1] = 0;
#else
  login[0] = 0; login[1] = 0; secret[own[t]] = t; secret[1 - own[t]] = 0;
#endif
  found = 0; SENT(sent && fencing && dbterm == t);
  dbterm = t; fencing = 1;
  TERMINATE;
  restart_drain();
  printf("sidecar: begin(%d)\n", t)
}

inline do_open(t) {
  login[own[t]] = 1; fencing = 0; step = IDLE; opened[t] = 1; found = 0; SENT(0);
  pending = 0; again = 0; last = 0;
  if :: t > newest -> newest = t :: else fi;
  printf("sidecar: open(%d)\n", t)
}

#ifdef MUT_NO_COMPARE
#define MAY_BEGIN(t) (granted >= t && dbterm != t && !opened[t])
#else
#define MAY_BEGIN(t) (granted >= t && dbterm < t)
#endif

/* In calm, only the newest holder works: the compare has refused the older ones. */
#define BEGIN(t) \
  :: d_step { MAY_BEGIN(t) && (!calm || granted == t) -> begin(t); BEGUN(t) }

#ifdef MUT_NO_FENCE
#define BEGUN(t) do_open(t); login[0] = 1; login[1] = 1
#else
#ifdef MUT_ONE_COMMIT
#define BEGUN(t) do_open(t)
#else
#define BEGUN(t) skip
#endif
#endif

active proctype world() {
  atomic {
    own[1] = 0;                                   /* the first is a's; the others are either's */
    if :: own[2] = 0 :: own[2] = 1 fi;
    if :: TERMS > 2 -> if :: own[3 % (TERMS + 1)] = 0 :: own[3 % (TERMS + 1)] = 1 fi :: else fi;
    if :: TERMS > 3 -> if :: own[4 % (TERMS + 1)] = 0 :: own[4 % (TERMS + 1)] = 1 fi :: else fi;
    granted = 1
  }
  do
  SESSION(0)
  SESSION(1)
#if SESSIONS == 3
  SESSION(2)
#endif
  :: d_step { !calm && granted < TERMS -> granted++; printf("election: term %d is claimed\n", granted) }
  BEGIN(1)
  BEGIN(2)
#if TERMS > 2
  BEGIN(3)
#endif
#if TERMS > 3
  BEGIN(4)
#endif
  /* A begin whose reply was lost is repeated. */
  :: d_step { !calm && fencing && !lost -> lost = 1; begin(dbterm); printf("  (repeated)\n") }

  /* drain, call by call: the virtual transactions first, the sessions second. When nothing is left that
     could change the secret, a second pass waits for logins that began with a changed one. */
#ifdef MUT_SESSIONS_FIRST
  :: d_step { fencing && step == LOCKS -> found = found || VISIBLES != 0; TERMINATE;
       again = (VISIBLES != 0); step = ACTIVE; printf("drain: reads the sessions\n") }
  :: d_step { fencing && step == ACTIVE -> pending = STARTINGS; printf("drain: pending %d\n", pending);
       if :: pending == 0 && !again -> step = DRAINED :: else -> step = LOCKS fi; pending = 0; again = 0 }
#else
  :: d_step { fencing && step == LOCKS ->
       if :: again -> pending = pending & STARTINGS :: else -> pending = STARTINGS; again = 1 fi;
#ifdef MUT_VISIBLE_ONLY
       pending = 0;
#endif
       step = ACTIVE; printf("drain: starting %d\n", pending) }
  :: atomic { fencing && step == ACTIVE -> found = found || VISIBLES != 0; TERMINATE;
       pending = pending & ~(VISIBLES);
       printf("drain: visible %d, pending %d\n", VISIBLES, pending);
       if
#ifdef MUT_ONE_PASS
       :: VISIBLES == 0 && pending == 0 -> step = DRAINED; again = 0
#else
       :: VISIBLES == 0 && pending == 0 && last -> step = DRAINED; again = 0; last = 0
       :: VISIBLES == 0 && pending == 0 && !last -> step = LOCKS; again = 0; last = 1
#endif
#ifdef MUT_NO_DRAIN
       :: true -> step = DRAINED; again = 0; pending = 0; last = 0
#endif
       :: else -> step = LOCKS fi }
#endif

  /* open checks the term, the sessions and the secret once more. */
  :: d_step { fencing && step == DRAINED ->
       if
#ifdef MUT_LATE_SECRET
       :: VISIBLES == 0 -> secret[own[dbterm]] = dbterm; secret[1 - own[dbterm]] = 0; do_open(dbterm)
#else
#ifdef MUT_NO_SEAL
       :: VISIBLES == 0 -> do_open(dbterm)
#else
#ifdef MUT_SEAL_IF_FOUND
       :: VISIBLES == 0 && (!found || secret[own[dbterm]] == dbterm) -> do_open(dbterm)
       :: VISIBLES == 0 && found && secret[own[dbterm]] != dbterm -> secret[own[dbterm]] = dbterm; restart_drain()
#else
#ifdef MUT_SEAL_AT_OPEN
       :: VISIBLES == 0 -> secret[own[dbterm]] = dbterm; do_open(dbterm)
#else
       :: VISIBLES == 0 && secret[own[dbterm]] == dbterm -> do_open(dbterm)
       :: VISIBLES == 0 && secret[own[dbterm]] != dbterm ->
            printf("sidecar: the secret was changed\n"); resealed = 1; SENT(1); begin(dbterm)
#endif
#endif
#endif
#endif
#ifdef MUT_SESSIONS_FIRST
       :: VISIBLES != 0 -> do_open(dbterm)          /* and open does not check again */
#else
       :: VISIBLES != 0 -> restart_drain()
#endif
       fi }
#ifdef MUT_OPEN_UNCHECKED
  /* The drain of an older term ended before a newer one began; its open comes late. */
  :: d_step { fencing && step == DRAINED && !late[dbterm] -> late[dbterm] = 1; printf("sidecar of %d stalls before open\n", dbterm) }
  :: d_step { late[1] && dbterm > 1 -> late[1] = 0; login[own[1]] = 1; opened[1] = 1; secret[own[1]] = 1; printf("late open(1)\n") }
  :: d_step { late[2] && dbterm > 2 -> late[2] = 0; login[own[2]] = 1; opened[2] = 1; secret[own[2]] = 2; printf("late open(2)\n") }
#endif
#ifdef MUT_LATE_OPEN
  /* A refused open was sent twice; its twin arrives when the next attempt has begun. */
  :: d_step { fencing && sent && VISIBLES == 0 && secret[own[dbterm]] == dbterm -> printf("late "); do_open(dbterm) }
#endif
#ifdef MUT_ASYNC
  /* The primary is lost, and a standby that had not received the fence is promoted. */
  :: d_step { !calm && newest > 1 && dbterm == newest && !lost -> lost = 1;
       dbterm = newest - 1; fencing = 0; step = IDLE; pending = 0; again = 0; last = 0;
       login[own[newest - 1]] = 1; secret[own[newest - 1]] = newest - 1;
       printf("repository: a standby without term %d is promoted\n", newest) }
#endif

  :: d_step { !calm -> calm = 1; printf("calm\n") }
#ifdef REACH_OPEN
  :: d_step { newest == TERMS && st[0] == VISIBLE && who[0] == TERMS -> assert(false) }
#endif
#ifdef REACH_BARRIER
  :: d_step { fencing && step == LOCKS && again && pending != 0 -> assert(false) }
#endif
#ifdef REACH_RACED
  :: d_step { raced -> assert(false) }
#endif
#ifdef REACH_RESEALED
  :: d_step { resealed && newest == 3 -> assert(false) }
#endif
  :: else ->
       /* No step is possible: then the newest holder's program can log in. */
#ifndef SAFETY_ONLY
       assert(calm && newest == granted && dbterm == granted && !fencing && login[own[granted]] &&
         (secret[own[granted]] == granted || secret[own[granted]] == SELF + granted));
#endif
       break
  od
}
