// Package tanist is the root of a sidecar that makes a program active exactly once on a set of hosts.
//
// It holds no code, only the test that keeps the layout of the repository as it is meant to be. Begin with package
// election, which decides who may act, and with cmd/tanist, which wires the rooms together.
package tanist
