// Package sidecar runs a controller for as long as its cluster's lease allows.
//
// A [Sidecar] takes part in the election of its cluster. While it holds the lease it reigns, and a
// reign is one function (lead.go):
//
//	fence → start → ready → publish → watch
//
// Its defers undo it in reverse:
//
//	unpublish → stop → confirm gone → (elector) release
//
// # What is guaranteed
//
//   - The controller is started only with the lease held, the repository fenced for this term, and
//     the debt of earlier holders waited out.
//   - The lease is released only after the last process of the controller's tree is confirmed gone.
//     If that cannot be confirmed, the lease is kept, the state is failed, and the stop is retried
//     for as long as the sidecar lives.
//   - A passive runs no controller.
//   - After a failure, this side leaves the lease to others for YieldWait (state yielding), and is
//     passive once another is active. If no other candidate takes over, or none could, it contends
//     again.
//
// # What is not guaranteed
//
// A frozen sidecar cannot stop anything. The guard of package process then ends the controller at
// the deadline that every renewal moves, and the repository's fence holds whatever runs where.
//
// # Usage
//
//	timing, err := election.Profile(election.ProfileDefault)
//	s := sidecar.New(sidecar.Config{
//		Cluster: "orders", Name: "ctl-a", URL: url, Backend: store, Timing: timing,
//		Controller: slot, Port: port, Log: log,
//	})
//	err = s.Run(ctx) // until ctx ends: the controller is gone, the lease released
//	view := s.View()  // from memory, at any time, from any goroutine
package sidecar
