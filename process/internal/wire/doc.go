// Package wire has what sidecar, guard and companion exchange: the records of the control socket,
// the spec with which a guard is started, the numbers of the descriptors that it finds, and the
// trace that leads a restarted sidecar back to its guard.
//
// Both sides are the same version of one binary, except for the trace and the records, by which a
// newer sidecar adopts the guard of an older one: those only grow. The package checks the form of
// what it reads, and nothing else.
//
// Usage: encode with Put and Encode, decode with [ParseRecord] and [DecodeSpec].
package wire
