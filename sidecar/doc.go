// Package sidecar is what being active means for a controller.
//
// A [Sidecar] takes part in the election of its cluster. While it holds the lease it reigns, and a reign is one
// function (lead.go):
//
//	fence → start → ready → publish → watch
//
// whose defers undo it in reverse:
//
//	unpublish → stop → confirm gone → (elector) release
//
// # What is guaranteed
//
//   - The controller is started only with the lease held, the repository fenced for this term, and the validity of
//     an old holder that did not release waited out.
//   - The lease is released only after the last process of the controller's tree is confirmed gone. If that can't be
//     confirmed, the lease is kept, the state is failed, and the stop is tried again for as long as the sidecar lives.
//   - A passive runs no controller.
//   - After a failure this side leaves the vacancy to others for YieldWait, state yielding, and is passive once
//     another is active. If nobody takes over, it contends again; at once if there is nobody who could.
//
// # What is not
//
// A sidecar that is frozen can't stop anything; the guard of package process ends the controller at the deadline that
// every renewal moves, and the repository's fence does not care what runs where.
package sidecar
