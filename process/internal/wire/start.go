package wire

import "time"

const (
	GuardName = "tanist-guard"
	GuardMark = "TANIST_GUARD" // in the environment of a guard
	TreeMark  = "TANIST_TREE"  // in the environment of what it guards; its value is one tree's own
)

// Exit codes of the guard, for the sidecar.
const (
	GuardGone     = 80 // no process of the tree is left: confirmed
	GuardUnproven = 81 // nothing below the guard is left, and nothing more can be proved
	GuardRefused  = 65 // nothing was started
	GuardUsage    = 64
)

// File descriptors that a guard is started with.
const (
	ControlFD = 3
	SpecFD    = 4
	ExtraFD   = 5 // the first of those that the spec numbers
)

// FlushWithin is for the last output, after the tree is gone.
const FlushWithin = 300 * time.Millisecond

// A guard is a Go program, and takes some 10 ms to come up. One that is started when a takeover is
// near has that behind it when it is needed. It comes up with nothing but its control socket, and
// is sent the rest, files included, in one message.

const (
	ReadiedMark = "TANIST_GUARD_READIED" // in the environment of a guard that is to wait for its spec
	// descriptors kept free for what is sent, control socket and those before it included
	ReadiedFDs  = 16
	ReadiedText = "go"
)
