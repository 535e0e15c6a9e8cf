// Package simulation runs the whole system under one seed.
//
// The real elector and sidecar, and the real slot that a program runs in, live in fake time
// (testing/synctest) on simulated hosts: a store that behaves like etcd or Consul, a network that
// loses, delays and repeats, clocks of different rates, state directories, guards and programs, a
// repository with its fence, and operators. Processes are frozen, thawed, killed and restarted at
// any step, with another configuration. One 64-bit seed decides everything.
//
// # What is guaranteed
//
// The same seed gives the same timeline, event for event (TestSameSeedSameTimeline). The checks use
// what the programs and the repository saw, not what a sidecar believes. A run ends by itself, with
// a quiet time in which one controller must serve, and after which nothing may be left behind.
//
// # What is not guaranteed
//
// The kernel is not simulated: what package process does to end a tree is a model here, and so is
// the fence of package postgres. Their own tests and the lab run those for real.
//
// # Usage
//
// Everything is in tests. docs/reliability.md has the figures and the defects found.
//
//	task simulate                       # random seeds on all cores for 4 minutes
//	task simulate -- --seed 17          # one seed, with its timeline; a failing one is made shorter
//	go test ./election/simulation       # the short form of continuous integration
package simulation
