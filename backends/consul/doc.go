// Package consul keeps the lease in Consul: a session with a TTL, keys that the session locks, and
// one transaction per verb.
//
// # How a lease is kept
//
// A lease is a session, and its id is the session's id. Sessions belong to a catalog entry that no
// agent owns, "tanist-<cluster>" ("tanistagents-<cluster>" for agents of the cluster), have no
// health check, and delete the keys that they lock when they end. So only the TTL, an operator or
// the holder itself can end a lease, and every key that is bound to it is locked by it. Why:
// docs/decisions/0011-consul-sessions-belong-to-no-agent.md.
//
// # Which bound covers what
//
//   - Validity is proved by a write, or by a read with ?consistent, which asks a majority, sent
//     after the session was renewed. A session renewal alone proves nothing: the leader alone
//     acknowledges it, and an isolated old leader keeps doing so.
//   - A session that ends without a release (its TTL, an operator) leaves a lock-delay of
//     [Config.LockDelay] on the keys that it locked; the intended value is the validity. Nobody can
//     claim before it is over. By then the holder has stopped, whatever the claimant believes. This
//     bound is the store's.
//   - The elector also waits for the last holder's validity by its own clock, from the moment it
//     first saw the vacancy. This bound covers a lock-delay that was lost (servers restored from a
//     snapshot forget it) or is not configured. The two waits overlap; together they take as long
//     as the longer one.
//   - A claim by silence takes the role key from a session that still lives. No session ends, so
//     there is no lock-delay: the only bound is the observed silence, enforced by compare-and-swap
//     on the beat key.
//   - A release deletes the keys before it ends the session, so the next claim need not wait.
//
// # What is not guaranteed
//
// Any token that may write the role key can overwrite it: Consul's ACL can't restrict a key to
// locked writes. The holder detects that at its next renewal. With raft_multiplier above 1 the
// servers take longer to elect a leader than [election.Traits] assumes; set [Config.LeaderGap]
// then. Consul 1.14 or later is required.
//
// # The virtual URL
//
// With [Config.Service] the active is a service on the catalog entry of the cluster. The
// transactions that write the role key also set and delete the service. So DNS never has two
// answers, and never the old one once the new one exists. The entry belongs to no agent, so no
// agent's restart or anti-entropy changes it. [Announcer] repairs it where no transaction could:
// when the last reign ended with its session and nobody took over, or when somebody removed it.
//
// # Usage
//
//	s, err := consul.Open(consul.Config{
//		Cluster: "orders", Address: "https://127.0.0.1:8501", Others: []string{"https://10.0.0.2:8501"},
//		TokenFile: "/run/secrets/consul", TLS: election.TrustFiles{CAFile: "/etc/tanist/ca.pem"},
//		TTL: timing.TTL, LockDelay: timing.Validity, Service: &consul.Service{Name: "orders"},
//	})
//	if err != nil {
//		return err // a mistake in the configuration: Open does not connect
//	}
//	defer s.Close()
//	elector := &election.Elector{Backend: s, …} // a sidecar, which also runs s.Announcer()
//	sightings := s.Follow(ctx)                  // an agentwatch or a proxy
package consul
