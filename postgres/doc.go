// Package postgres fences the metadata repository: once the fence of term N is open, no statement
// of an older term commits, whatever processes, hosts and networks do. It relies on no clock.
//
// Stopping a program is not enough for that. A COMMIT in the send buffer of a dead host is
// delivered when the partition heals. So the repository itself must know who may write, and must
// learn it before the new controller starts.
//
// # How
//
// Each controller's program has its own login role. Only the role of the current term may log in. A
// sidecar has a separate login, which may call a few functions in the schema "tanist" for its own
// controller and nothing else. [Fence.Raise] takes three steps. After a crash between any two of
// them nobody can log in, and the next term repairs the state.
//
//   - begin, one commit: compare and raise the term (an older one is refused); set NOLOGIN on every
//     role; void the secrets of the other controllers; set the verifier of a fresh random secret
//     for the own role. The secret itself never leaves the controller's host.
//   - drain, in a loop: early in its start a backend checks whether its role may log in, but it
//     appears in pg_stat_activity only at the end. It does hold a virtual transaction id from before
//     that check. So drain reads the virtual transaction ids first and the sessions second, and
//     terminates the sessions of controllers. A pass is done when each of the first ids has ended or
//     belongs to another session, and no session of a controller is left. A second pass is for
//     logins that began with a password which such a session had set.
//   - open, one commit: compare the term again, check that no session has come back, set LOGIN on the
//     own role, and compare its stored verifier with the term's. A role may change its own password,
//     so a dying session could have done it after begin. If open refuses, all three steps are taken
//     again, as another attempt.
//
// Roles are bound by their oid: a role that a controller used before, or that was renamed or
// dropped, stays shut out, and so do its sessions. Unfinished logins are ended after half a second.
// Every statement is idempotent and bounded, and is sent on a second connection if the reply takes
// longer than half a second.
//
// Three simpler designs leak, and the tests of this package show each leak: everything in one
// transaction (the old role may log in until it commits); NOLOGIN first and then terminating until
// pg_stat_activity is empty (a starting backend is not in it yet); setting the new secret in the
// open step (a client in the middle of SCRAM with the old secret passes).
//
// # Which PostgreSQL
//
// The fence is tested on 15. After [Init] it needs no superuser. On 15 and older, CREATEROLE lets
// the owner of the fence alter every role that is not a superuser; nobody can log in as the owner,
// and its functions alter the roles of controllers only. From 16 on CREATEROLE is not enough, so
// [SetupSQL] gives the owner ADMIN OPTION on each controller's role and nothing else. The tests
// read TANIST_PG_BINDIR, the directory of another version's programs.
//
// The sidecar must connect to the server itself, not to a pooler. The program may use a pooler
// (PgBouncer) that logs in with the program's own role and secret: the pool's sessions end with the
// term. A pooler with a forced user turns all controllers into one and must not be used.
//
// # The gate
//
// For a program with a fixed password, package gate listens on the same host and logs in with the
// secret of the term. It does not receive the sidecar's own login ([WithoutLogin]). The fence holds
// with or without it.
//
// # What is guaranteed
//
// For one primary with its crash recovery, and for a failover to a synchronous standby: I1, no
// commit of a term lands after the open of a later term. I2, terms open in ascending order. I3, no
// commit of a term lands before its own open. The history table records the transaction ids, so all
// three can be audited against the write-ahead log.
//
// # What is not guaranteed
//
//   - A failover to an asynchronous standby may lose the fence itself. [Fence.Assert] detects it
//     afterwards; [Check] warns about it before.
//   - Roles that bypass the fence: superusers, REPLICATION, CREATEROLE. They are refused as roles
//     of controllers by one list of conditions, which [Init] enforces, [Fence.Ready] watches and
//     [Check] shows.
//   - Logins without a password: if pg_hba.conf trusts the controller's role, an old process of the
//     same controller can come back in the controller's next term. The list of conditions covers
//     what a login may read of pg_hba.conf, and each sidecar tries its own ways in.
//   - Work done by others on a controller's behalf: cron jobs in the server, foreign servers,
//     logical replication, prepared transactions that another session commits.
//   - Progress while a session of an older term can't be ended because its backend is stopped or
//     hangs in the kernel.
//
// # Usage
//
//	f, err := postgres.NewFence(postgres.Config{
//		Cluster: "orders", Controller: "ctl-a", Role: "orders_a", DSN: dsn, // of the sidecar's own login
//		Secret: postgres.Secret{Passfile: "/run/orders/pgpass"},
//	})
//	err = f.Ready(ctx)           // while passive, periodically: could the fence be raised, and would it hold?
//	env, err := f.Raise(ctx, 8)  // then start the program with env
//	err = f.Assert(ctx, 8)       // while active: is the repository still ours?
//	err = f.Close(ctx, 8)        // after the program is gone
package postgres
