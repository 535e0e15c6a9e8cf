// Package tanist is the root of a sidecar that keeps exactly one copy of a program active on a set
// of hosts.
//
// It holds no code, only the test that enforces the layout of the repository. Begin with package
// election, which decides who may act, and with cmd/tanist, which wires the packages together.
package tanist
