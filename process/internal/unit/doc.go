// Package unit asks systemd about one unit: whether Tanist can run it, whether it runs or is about to,
// and how it ended.
//
// The sidecar uses it, and so does the guard, in a process of its own, so that a bus that hangs
// delays neither deadline nor kill. The package keeps no state: a [Manager] is one connection, and
// every answer is systemd's at that moment, which may have changed since.
//
// Usage: [Connect], then Start, Stop and Exit with the unit's name, then Close.
package unit
