// Package simulation runs the whole system under one seed.
//
// The real elector and sidecar, and the real slot that a program runs in, live in fake time (testing/synctest) on simulated
// hosts: a store with the ways of etcd or of Consul, a network that loses, delays and repeats, clocks of different rates,
// state directories, guards and programs, a repository with its fence, and operators. Processes are frozen, thawed, killed
// and restarted at any step, with another configuration. One 64-bit seed decides everything.
//
// Guarantees: the same seed gives the same timeline, event for event (TestSameSeedSameTimeline). What is checked is what the
// programs and the repository saw, not what a sidecar believes. A run ends by its own length, with a quiet time in which one
// must serve, and after which nothing may be left behind.
//
// It does not simulate the kernel: what package process does to end a tree is a model here, and so is the fence of package
// postgres. Tests and the lab run those for real.
//
// Usage: everything is in tests.
//
//	task simulate                       many seeds on all cores, until the time is up
//	task simulate -- --seed 17          one seed, with its timeline; a failing one is made shorter
//	go test ./election/simulation       the short form of continuous integration
//
// docs/reliability.md has the figures and the defects that it has found.
package simulation
