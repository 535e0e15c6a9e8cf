// Package election decides who may act.
//
// A cluster has many controllers and at most one of them may be active. The right to be active is a lease:
// granted by a store (etcd, Consul, a plugin), valid for a bounded time, and numbered. The number is the
// [Term]; it grows by one at every takeover and is the fencing token everywhere else.
//
// # What is guaranteed
//
// All timing policy lives here, once, in [Timing]; a store adapter ([Backend]) has plain verbs only.
//
//   - A lease is valid until s+V. s is read from CLOCK_BOOTTIME before the renewal that the store acknowledged was
//     sent, V is [Timing.Validity]. Replies are never a time base.
//   - No two leases are valid at the same moment, as long as the rates of two hosts' clocks differ by less
//     than [MaxDrift]. This does not rest on the store keeping a lease for as long as it promised: whoever
//     takes over after anything but a clean release waits out the old holder's possible validity too.
//   - A lease is released last, after the reign that it allowed has been undone, and a released lease is marked clean
//     so that the next holder need not wait.
//
// # What is not guaranteed
//
// A lease is a promise about time, and a process that is not running keeps no promises: a frozen host may thaw
// after its lease has ended. The guard of package process narrows that to the scheduling delay of one process; only
// a fence at the resource (package postgres) closes it.
//
// Clock offsets, clock jumps and time zones never matter; only rates do.
package election
