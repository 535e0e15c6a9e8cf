// Package postgres fences the metadata repository: after the fence of term N is open, no statement of an older term
// commits any more, whatever processes, hosts and networks do. No clock is trusted for it.
//
// Stopping a program is not enough for that. A COMMIT that sits in the send buffer of a dead host is delivered when
// the partition heals. Therefore the repository itself has to know who may write, and it has to be told before the
// new controller starts.
//
// # How
//
// Each controller's program has a login role of its own. The roles may not log in, except that of the present term.
// A sidecar has another login, which may call a few functions in the schema "tanist" for its own controller and do
// nothing else. [Fence.Raise] goes through four steps; after a crash between any two of them nobody can log in, and
// the next term repairs it.
//
//   - begin, one commit: the term is raised by compare (an older one is refused); all roles get NOLOGIN; the others'
//     secrets are void; the verifier of a fresh random secret is set for the own role. The secret itself never
//     leaves the host of the controller.
//   - drain, again and again: a backend checks early in its start whether the role may log in, and shows in
//     pg_stat_activity only at the end. But it holds a virtual transaction id from before that check. So the virtual
//     transaction ids are read first and the sessions second; sessions of controllers are terminated; done is when
//     all the first ids are gone or are known to be sessions of others, and no session of a controller is left.
//   - seal, only if drain has found sessions: a role may change its own password, so a dying session could have done it
//     after begin. The verifier is set again and drain starts over.
//   - open, one commit: the term is compared again; the own role gets LOGIN.
//
// Three simpler designs leak, and the tests of this package show each of them leaking: everything in one transaction
// (until it commits, the old role may log in); NOLOGIN first and then terminating until pg_stat_activity is empty
// (the start of a backend, above); setting the new secret when the role is opened (a client that is half-way through
// SCRAM with the old secret passes).
//
// # Which PostgreSQL
//
// Tested on 15. After [Init] no superuser is needed. On 15 and older the owner of the fence may alter every role that is
// not a superuser, by CREATEROLE; nobody can log in as it, and its functions only alter the roles of controllers. From 16 on
// CREATEROLE is not enough, and [SetupSQL] gives the owner ADMIN OPTION on each controller's role and nothing else of it.
// The tests take TANIST_PG_BINDIR, the directory of another version's programs.
//
// The sidecar needs a connection to the server itself, not to a pooler. The program may use a pooler (PgBouncer) that logs in with the
// program's own role and secret: sessions of the pool end with the term. A pooler with a forced user makes all
// controllers one, and must not be used.
//
// # The gate
//
// For a program whose password is fixed, [Gate] listens on the same host and logs in with the secret of the term. It is a process of its
// own in the program's tree: it lives on when the sidecar is killed or upgraded, and it ends with the tree, at the lease's deadline at the
// latest. If it dies before, the program counts as failed. Two promises, of two parts:
//
//   - The fence: after a later term is open, no statement of this one commits. It holds with and without a gate, whatever is frozen,
//     killed or delayed, and no clock is trusted for it.
//   - The gate: from the deadline on no chunk leaves this host for the repository, also when the gate, the guard or both were stopped
//     before it and go on after it. It rests on this host's clock, and it is promptness only: between its look at the clock and
//     the write there is a gap, behind the write are buffers, and what had left before is on its way.
//
// The gate is not told the sidecar's own login ([WithoutLogin]). The secret reaches it through memory that no other process can open; it can't
// be read from its environment, arguments or memory by a program of the same user. It runs as the sidecar's user.
//
// A round trip through it costs two more hops on the host. That is little beside a network, and much beside a server on the same host: there, on two
// busy cores, pgbench reached a half to four fifths of what it reaches without the gate (BenchmarkGate). A program that has it to choose saves
// one hop's TCP by a socket (listen: unix:).
//
// # What is guaranteed
//
// For one primary and its crash recovery, and for a failover to a synchronous standby: I1, no commit of a term lands
// after the open of a later one. I2, terms open in rising order. I3, no commit of a term before its own open. The
// history table has the transaction ids, so all that can be audited against the write-ahead log.
//
// # What is not guaranteed
//
//   - A failover to an asynchronous standby may lose the fence itself. [Fence.Assert] sees it afterwards; [Check] warns
//     before.
//   - Roles that stand above the fence: superusers, REPLICATION, CREATEROLE. [Check] refuses them as roles of controllers.
//   - Log-ins without a password: if pg_hba.conf trusts the controller's role, an old process of the same controller can
//     come back in the controller's next term. [Check] tries it.
//   - What others do on a controller's behalf: cron jobs in the server, foreign servers, logical replication, prepared
//     transactions that somebody else commits.
//   - Progress while somebody keeps connections half-way through authentication: the barrier waits for them, at most
//     authentication_timeout (the server's; 60 s by default, 10 s is recommended).
package postgres
