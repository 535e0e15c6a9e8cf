// Package e2e tests the whole of Tanist with real everything: the binaries as shipped, etcd,
// PostgreSQL, HAProxy, and real signals to real processes. It imports nothing that is shipped, so
// it sees what an operator sees.
//
// The tests drive tanist-lab, which judges every fault by evidence of its own (see cmd/tanist-lab).
// They compare its findings with the guarantees (the other controller takes over, nothing overlaps,
// nothing confirmed is lost, nothing stale is accepted) and with the figures: the time of a
// takeover, the size of the binary, the cost of an idle sidecar.
//
// They cannot show what needs several machines: network hardware, kernels that fail one by one,
// clocks at different rates. Package bench cuts links between namespaces; package simulation has the
// clocks.
//
// # Usage
//
//	go test ./e2e          # each fault once, with bounds that a busy machine can keep
//	go test ./e2e -full    # each measured fault twenty times, with the figures of an idle machine
package e2e
