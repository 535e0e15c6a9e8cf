// Package operate carries out what operators ask of a cluster: switchover, pause, standby and the
// other verbs. The command line and the REST interface of the sidecars share it.
//
// # What is guaranteed
//
//   - A verb is checked against the state of the cluster that its caller has read, and what it
//     writes is bound to that state (to a term, or to the version of a key). An operator never moves
//     something else than what was shown.
//   - A verb only writes requests. The sidecars decide and act, by the rules of package election.
//   - [Cluster.Run] and [Cluster.Begin] leave a record of who asked for what, with the equivalent
//     command and the outcome.
//
// # What is not guaranteed
//
// Who may ask is up to the caller: a command has the rights of its login at the store, and package
// api authenticates its clients. A record in the store can be changed by everybody who may write to
// the store.
//
// # Usage
//
//	c := operate.Cluster{Name: "orders", Store: store, By: "ana"}
//	if err := c.Look(ctx); err != nil { … }
//	move := &operate.Switchover{To: "ctl-b"}
//	if err := move.Check(ctx, &c); err != nil { … } // then perhaps ask
//	err := c.Run(ctx, move, say)
package operate
