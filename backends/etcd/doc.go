// Package etcd carries elections in etcd.
//
// A [Store] is an [election.Backend] for one cluster. It has no timing policy and renews nothing by itself. What it adds
// to plain requests is what keeps one dead etcd member from costing a lease:
//
//   - There is one client per endpoint, not one for all. Reads, renewals and other requests that may be repeated are
//     hedged: when an endpoint has not answered after a moment, the next is asked too, and the first answer counts.
//   - A transaction that must not be carried out twice goes to one endpoint. The next one is tried only when it is
//     certain that the request never left this host. Everything else is an unknown outcome, to be resolved by reading.
//   - Every request is bounded. The client library's own calls wait for a connection for as long as their context lives.
//
// # What is guaranteed
//
// Ownership is that the role key is bound to a lease, nothing else: values can be copied, revisions are rewound by a
// restore from backup. Every claim, publication and release is one transaction that compares it. Every read is one
// linearizable transaction. A renewal that proves to hold prolongs the lease first and compares then.
//
// # Traps of etcd that this package steps around
//
// A transaction that has comparisons but no operations is served from the local, possibly stale, state of one member; so
// a comparison here always comes with a linearizable get. A plain put unbinds a key from its lease. Watches stall without
// an error when a member is cut off; so they demand a leader, are re-established when their connection or their
// endpoint changes, and are only ever a hint, except in [Store.Follow], which also reads again. The keepalive
// loop of the client library and its sessions learn of a loss up to a second late, and are not used. With a user and a
// password, the client library asks for a new token for every stream (each costs the server a password hash), and can't
// be created while a server is away; so this package keeps the tokens itself.
//
// # What is not guaranteed
//
// etcd keeps a lease for at least its TTL after each renewal, and longer when its own leader changes: then every lease
// starts over. Versions before 3.4.38, 3.5.23 and 3.6.5 may drop a lease early or acknowledge a renewal of one that
// is gone; [Store.Warning] says so. Two etcd clusters behind the endpoints of one configuration are two stores.
package etcd
