// Package e2e tests the whole of Tanist with real everything: the binaries as shipped, etcd,
// PostgreSQL, HAProxy, and real signals to real processes. It imports nothing that is shipped, so
// it sees what an operator sees.
//
// The tests drive tanist-lab, which judges every fault by evidence of its own (see cmd/tanist-lab).
// They compare its findings with the guarantees (the other controller takes over, nothing overlaps,
// nothing confirmed is lost, nothing stale is accepted) and with the figures: the time of a
// takeover, the size of the binary, the cost of an idle sidecar.
//
// `go test ./e2e` is the short form: each fault once, with bounds that a busy machine can keep. `go
// test ./e2e -full` runs each measured fault twenty times and demands the figures of an idle
// machine.
package e2e
