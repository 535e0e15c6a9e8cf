// Package vip keeps virtual IP addresses on the host whose controller is active.
//
// A sidecar makes a [Holder] and tells it when to look for other holders of the addresses, when to
// hold them until a deadline, and when to release them. The Holder starts a keeper: the same
// binary, executed once more, in a session of its own ([Keep]). The keeper is the only process that
// needs CAP_NET_ADMIN and CAP_NET_RAW, and it drops every other capability. It adds, announces and
// removes the addresses, and enforces the deadline.
//
//	sidecar ──(hold until, extend, release)──► keeper ──(add, remove)──► kernel
//	   ▲ ◄──(state of every address)────────────┘                        └── removes it when its lifetime ends
//
// # What is guaranteed
//
//   - An address is removed when it is released, and at the deadline at the latest: by the keeper,
//     even when the sidecar is dead or frozen. The deadline is an instant of CLOCK_BOOTTIME and
//     sticky: nothing changes it once it has passed.
//   - The kernel removes the address when the keeper is frozen or dead too: every address has a
//     lifetime, in whole seconds, that is renewed with the lease. It ends no later than the
//     deadline while a second or more remains until the deadline.
//   - A sidecar that restarts before the deadline takes over its addresses without an interruption.
//   - An address that Tanist did not add is neither removed nor changed. Ours have an address
//     protocol (0x54, since Linux 5.18) and, for IPv4, a label that ends in ":tanist", or a shorter
//     form if the interface's name is long.
//   - Before it takes an address, the keeper asks the network whether another host answers for it.
//     An answer does not prevent the takeover: the other host is most likely a former holder whose
//     processes are frozen while its kernel still answers. The conflict is reported, and the
//     address is announced until the answers stop.
//
// # What is not guaranteed
//
// A lifetime has whole seconds. With a validity below 1.3 s and the keeper frozen or killed, the
// kernel may keep the address for up to a second after the deadline. A host whose kernel answers
// for an address that Tanist did not add keeps answering. Neighbors that ignore gratuitous ARP and
// unsolicited neighbor advertisements learn of a move when their own cache entry expires. On
// kernels before 5.18 an IPv6 address counts as ours if it is configured and has a lifetime. Which
// host users reach is a matter of routing: that no statement of an older term commits is the
// guarantee of the repository's fence alone.
//
// A [Follower] holds addresses for a controller whose election is in another process's hands. Its
// rule is simpler: a read of the role key is valid for two seconds, and another host waits for
// longer than that before it takes the addresses.
//
// # Usage
//
//	holder, err := vip.Start(ctx, vip.Config{Addresses: addresses, Socket: path, Log: log})
//	defer holder.Close()
//	holder.Look()                             // while the controller starts
//	err = holder.Hold(ctx, term, deadline)    // when serving is published
//	holder.Extend(deadline)                   // with every renewal
//	err = holder.Release(ctx)                 // before the controller is stopped
package vip
