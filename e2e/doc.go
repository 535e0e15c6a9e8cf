// Package e2e tests the whole of Tanist with real everything: the binaries as they are shipped, etcd, PostgreSQL, HAProxy,
// and real signals to real processes. Nothing in it imports what is shipped; it sees what an operator sees.
//
// The tests drive tanist-lab, which judges every fault by evidence of its own (see cmd/tanist-lab), and hold its
// findings against what is promised: the other controller takes over, nothing overlaps, nothing that was confirmed is
// lost, nothing stale is accepted; and against numbers: the time of a takeover, the size of the binary, what a sidecar
// costs while nothing happens.
//
// `go test ./e2e` is the short form: each fault once, bounds that a busy machine can keep. `go test ./e2e -full` runs
// each measured fault twenty times and asks for the numbers that are promised on an idle machine.
package e2e
