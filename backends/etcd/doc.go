// Package etcd stores elections in etcd.
//
// A [Store] is an [election.Backend] for one cluster. It has no timing policy and starts no
// renewals. What it adds to plain requests keeps one dead etcd member from costing a lease:
//
//   - There is one client per endpoint. Reads, renewals and other repeatable requests are hedged.
//     A transaction that must not run twice goes to one endpoint, and its failure is an unknown
//     outcome, to be resolved by reading. Why: docs/decisions/0012-one-etcd-client-per-endpoint.md.
//   - Every request is bounded.
//
// # What is guaranteed
//
// A controller is the owner if and only if the role key is bound to its lease: values can be
// copied, and a restore from backup rewinds revisions. Every claim, publication and release is one
// transaction that compares the binding. Every read is one linearizable transaction. A renewal that
// proves ownership first prolongs the lease and then compares.
//
// # Traps of etcd that this package avoids
//
// A transaction with comparisons but no operations is served from the local, possibly stale, state
// of one member; so a comparison here always comes with a linearizable get. A plain put unbinds a
// key from its lease. Watches stall without an error when a member is cut off. So they require a
// leader, are re-established when their connection or endpoint changes, and only ever give hints,
// except in [Store.Follow], which also rereads. The client library's keepalive loop and sessions
// detect a loss up to a second late and are not used
// (docs/decisions/0004-no-session-library-as-a-clock.md).
//
// # What is not guaranteed
//
// etcd keeps a lease for at least its TTL after each renewal, and longer when its own leader
// changes: then every lease starts over. Versions before 3.4.38, 3.5.23 and 3.6.5 may drop a lease
// early or acknowledge the renewal of a lease that is gone; [Store.Warning] reports that. Two etcd
// clusters behind the endpoints of one configuration are two stores.
//
// An etcd whose quota is used up serves reads and renewals and refuses writes
// ([election.ErrReadOnly]): a reign that beats ends, any other continues, and nobody can claim.
// [Store.Warning] warns long before.
//
// # Usage
//
//	s, err := etcd.Open(etcd.Config{
//		Cluster: "orders", Endpoints: []string{"https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"},
//		Username: "tanist-orders", PasswordFile: "/run/secrets/etcd", TLS: election.TrustFiles{CAFile: "/etc/tanist/ca.pem"},
//	})
//	if err != nil {
//		return err // a mistake in the configuration: Open does not connect
//	}
//	defer s.Close()
//	elector := &election.Elector{Backend: s, …} // a sidecar
//	sightings := s.Follow(ctx)                  // an agentwatch or a proxy
package etcd
