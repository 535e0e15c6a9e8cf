// Package election decides who may act.
//
// A cluster has many controllers, and at most one of them may be active. The right to be active is
// a lease: granted by a store (etcd, Consul or PostgreSQL), valid for a bounded time, and numbered. The number
// is the [Term]. It grows by one at every takeover and is the fencing token everywhere else.
//
// # What is guaranteed
//
// All timing policy is here, in [Timing]. A store adapter ([Backend]) has plain verbs only.
//
//   - A lease is valid until s+V. s is read from CLOCK_BOOTTIME before the last acknowledged
//     renewal was sent, and V is [Timing.Validity]. Replies are never a time base.
//   - No two leases are valid at the same moment, as long as the rates of two hosts' clocks differ
//     by less than [MaxDrift]. This does not depend on the store keeping a lease for as long as it
//     should: after anything but a clean release, a taker also waits out the old holder's
//     possible validity.
//   - What earlier holders may still be allowed is in the term record, as a debt ([Breadcrumb]).
//     Every claim, release and resumption passes the remaining debt on. Nothing is started or
//     handed over while it is open.
//   - Only a [Proof] moves a validity: that the role key is bound to the lease and has the holder's
//     own record, and that the beat was written. Prolonging a lease moves nothing.
//   - Validity, TTL and beat belong to the reign. A process that resumes a reign ([Held]) uses
//     those of the reign, not of its own [Timing].
//   - A lease is released last, after its reign has been undone. A released lease is marked clean,
//     so that the next holder need not wait.
//
// # What is not guaranteed
//
// A lease binds only a process that runs: a frozen host may thaw after its lease has ended. The
// guard of package process narrows that window to the scheduling delay of one process. Only a fence
// at the resource (package postgres) closes it.
//
// Clock offsets, clock jumps and time zones never matter. Only rates do.
//
// # Usage
//
//	e := &election.Elector{Backend: store, Timing: timing, Self: self, Record: record}
//	e.Lead = func(ctx context.Context, t *election.Tenure) election.End {
//		t.OnExtend(guard.Extend) // the new deadline, at every renewal
//		<-ctx.Done()             // or until the controller fails
//		return stop(t)           // nothing runs any more: the lease may be released
//	}
//	e.Run(ctx)
//
// A follower (an agent, a proxy) passes what it sees of the role key through a [Filter].
package election
