// Package electiontest has what tests of elections need: a store in memory, with faults, and the
// contract that every store must pass.
//
// # The store in memory
//
// [NewStore] is one cluster of a linearizable store with leases. It uses package time, so inside
// testing/synctest its leases end in fake time. It has no sockets, and no goroutine that outlives
// the context of the call that started it. Every host of a test has its own [Client]. Faults are
// injected per client (a partition, delays, lost replies, requests that arrive late, a stalled
// watch) or into the store itself (a lease revoked early, a stranger's writes, a rewound term
// counter).
//
//	store := electiontest.NewStore()
//	a, b := store.Client("ctl-a"), store.Client("ctl-b") // both are an election.Backend
//	a.Partition()
//
// # The contract
//
// [Contract] is the test suite of [election.Backend]: what a store and its adapter must do to carry
// an election. It runs in real time against whatever a [Harness] opens. It logs the faults that a
// harness cannot inject, and does not test them.
//
//	func TestContract(t *testing.T) { electiontest.Contract(t, open) }
//
// # What is not guaranteed
//
// The contract observes a store from outside for a few seconds. It finds an adapter that breaks its
// guarantees in the usual ways. It cannot prove that a store is linearizable, nor that it keeps its
// leases under every fault of its own.
package electiontest
