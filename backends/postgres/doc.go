// Package postgres stores elections in a PostgreSQL database.
//
// A [Store] is an [election.Backend] for one cluster. It has no timing policy and starts no
// renewals. [Init] prepares a database with a few tables, and with functions that are all that a
// login may call. Every function is one statement, one message and one transaction: a client that
// stops, or whose network does, leaves nothing locked.
//
// # What is guaranteed
//
// The transactions that change a cluster run one after the other (each begins by locking the
// cluster's row), commit synchronously whatever the database's default is, and compare what they
// rely on. Every write of a key gives it a version that it never had. A key that is bound to a lease
// is removed with the lease, by a foreign key. A renewal that proves ownership prolongs the lease and
// reads the role key in one transaction, and is sent before the caller's clock has moved: the store
// only ever returns that it happened, never a time.
//
// A commit for which the server did not wait for its synchronous standby, because somebody cancelled
// the wait, is an unknown outcome.
//
// # Leases and clocks
//
// A lease is a number of milliseconds, compared with the time since the server's host was booted
// (/proc/uptime, read by a function of the superuser who ran Init). A step of the server's wall clock
// changes nothing, and a suspended host has lost that time. On a server where that can't be read
// (managed services, other systems than Linux) it is the wall clock, and [Store.Warning] reports it.
// There a step forward ends leases early: the holder stops, and the next one waits out the old
// holder's validity as after any lost lease, so there are never two. A step backward keeps the lease
// of a dead holder for that much longer.
//
// Nothing in PostgreSQL ends a lease by itself. Every call first ends the leases of its cluster that
// are over, and the process of each watch looks at the moment at which the next one may be. If nobody
// looks, nobody sees that a lease should have ended.
//
// When the server was restarted, crashed, or another one was promoted, every lease starts over, once:
// none ends early because nobody could renew it meanwhile, and that of a dead holder ends one TTL
// after the first look.
//
// # Watches
//
// All watches of a process share one connection that listens. A notification is a hint, without a
// content that anybody relies on: every login of the database could send it. A read is the truth.
//
// # What is not guaranteed
//
// The database is the bound of the availability: while it is away nobody can claim or renew.
//
// A failover to an asynchronous standby loses what that standby had not received: claims, releases,
// terms. A server that was promoted has another timeline, and the election treats it as another
// store: it waits out the longest validity that it knows of, and takes nothing for clean. But an old
// primary that still runs and is still reached confirms renewals to its clients, while the new one
// accepts the claims of others. Only synchronous replication, or a failover that stops the old
// primary first, prevents that.
//
// Standbys and read-only servers are refused at every connection and in every call. Poolers are
// refused (the process that answers is not the one that the login came to): they swallow
// notifications, and share a session among clients.
//
// # Usage
//
//	err := postgres.Init(ctx, superDSN, postgres.SetupOptions{
//		Cluster: "orders", Logins: []postgres.Login{{Name: "tanist_orders", Kind: postgres.KindController}},
//	})
//	s, err := postgres.Open(postgres.Config{
//		Cluster: "orders", DSN: "postgres://tanist_orders@db1,db2/orders?sslmode=verify-full", PasswordFile: "/run/secrets/store",
//	})
//	if err != nil {
//		return err // a mistake in the configuration: Open does not connect
//	}
//	defer s.Close()
//	elector := &election.Elector{Backend: s, …} // a sidecar
//	sightings := s.Follow(ctx)                  // an agentwatch or a proxy
package postgres
