package wire

// File descriptors that a companion is started with.
const (
	PageFD  = 3 // the deadline, in memory shared with the guard
	InputFD = 4
	ReadyFD = 5
)

const CompanionReady = "ready"
