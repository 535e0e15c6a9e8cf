// Package attend is what a companion of the program calls: [Attend] returns its instructions, and
// [Attendance.Deadline] its deadline.
//
// The guard writes the deadline into shared memory, so a companion can read it before each of its
// acts, even when sidecar and guard are frozen. The package does not stop a companion that ignores
// its deadline; the guard does.
//
// Usage: call Attend first in the process, report with Ready when the companion serves, and check
// Deadline before each act.
package attend
