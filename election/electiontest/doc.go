// Package electiontest has what tests of elections need: a store in memory, with faults, and the contract that every
// store must pass.
//
// # The store in memory
//
// [NewStore] is one cluster of a linearizable store with leases. Its time is package time's, so inside
// testing/synctest its leases end in fake time; it has no sockets, and no goroutine that outlives the context of the call
// that started it. Every host of a test gets its own [Client], and faults are injected per client (a partition, delays,
// lost replies, requests that arrive late, a stalled watch) or into the store itself (a lease revoked early, a
// stranger's writes, a term counter that was rewound).
//
// # The contract
//
// [Contract] is the suite behind [election.Backend]: what a store, its adapter, or a plugin must do to carry an election. It
// runs in real time against whatever a [Harness] opens. What a harness can't inject is not tested, and the log says so.
//
// # What it does not prove
//
// The contract observes a store from outside for a few seconds. It finds an adapter that breaks its promises in the usual
// ways; it can't prove that a store is linearizable, nor that it keeps its leases under every fault of its own.
package electiontest
