// Package consul keeps the lease in Consul: sessions with a TTL, keys that are locked by them, and one transaction per
// verb.
//
// # How a lease is kept
//
// A lease is a session and its id is the session's id. Sessions hang on a catalog entry that no agent owns,
// "tanist-<cluster>" ("tanistagents-<cluster>" for agents of the cluster), and are bound to no health check. So nothing
// but the TTL, an operator, or the holder itself ends one: not a false alarm of the gossip, not an agent that is stopped
// gracefully (that deregisters the agent's own entry, and every session on it). And a token for one of the two entries
// gives no power over sessions on the other.
//
// The behavior of every session is "delete": when it ends, the keys that it locks vanish. With "release" they would
// stay, unlocked, and could not be told from keys that somebody wrote by hand. (What "release" would keep is Consul's
// LockIndex, which is no fencing token: a plain write resets it. The term key is.) In Consul only locked keys end with a
// session, so every key that is bound to a lease is locked by it, status keys too.
//
// # Which bound covers what
//
//   - Validity is proved by a write or by a read with ?consistent, which asks a majority, sent after the session was
//     renewed. Session renewals alone prove nothing: they are answered by the leader alone, and an isolated old leader goes
//     on saying yes.
//   - A session that ends other than by a release (its TTL, an operator) leaves a lock-delay of [Config.LockDelay] on what
//     it locked; the intended value is the validity. Until it is over nobody can claim, so that whoever held the lease has
//     stopped, whatever the claimant believes. This bound is the store's.
//   - The elector waits out the last holder's validity by its own clock too, from the moment it first saw the vacancy. This bound
//     covers a lock-delay that was lost (servers restored from a snapshot forget it) or is not configured. The two waits
//     overlap; together they take as long as the longer.
//   - A claim by silence takes the role key from a session that still lives. No session ends, so there is no lock-delay:
//     the bound is the observed silence alone, enforced by compare-and-swap on the beat key.
//   - A release deletes the keys before it ends the session, so the next claim need not wait.
//
// # What is not guaranteed
//
// Anybody whose token may write the role key can overwrite it: Consul's ACL can't restrict a key to locked writes. The
// holder finds that out with its next renewal. With raft_multiplier above 1 the servers take longer to elect a leader than
// [election.Traits] says; set [Config.LeaderGap] then. Consul 1.14 or later is needed.
//
// # The virtual URL
//
// With [Config.Service] the active is a service on the catalog entry of the cluster. It is set and deleted by the same
// transactions that write the role key, so DNS never has two answers, and never the old one once the new one is there.
// The entry belongs to no agent, so no agent's restart or anti-entropy touches it. [Announcer] repairs it where no
// transaction could: when the last reign ended with its session and nobody took over, or when somebody removed it.
package consul
