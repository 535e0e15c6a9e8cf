package process

import (
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/process/internal/wire"
)

// startWithin bounds what a guard needs to start a program; a loaded host was seen to take 1 s.
const startWithin = 30 * time.Second

// Config describes a program to keep. The zero value of each field but Command is usable.
type Config struct {
	// Command is the program and its arguments. A name without a slash is searched in the PATH of
	// the program's environment.
	Command []string
	// Identity is who the program is among all that are kept on this host; with a StateDir it is
	// required. What a killed sidecar and a killed guard leave behind bears this name, so that it
	// is found without any file.
	Identity Identity
	// Inherit is what the program gets of the environment of this process, as KEY=VALUE; nil means
	// all of it. What says who User is, Env, and what Start is given come on top, in this order; of
	// entries with the same key the last one counts.
	Inherit []string
	Env     []string
	// Dir is the working directory; empty means that of this process.
	Dir string
	// User is the name or number of the user to run as; empty means that of this process.
	User string
	// StopSignal asks for a graceful end; 0 means SIGTERM. It goes to the process group of the main
	// process.
	StopSignal syscall.Signal
	// Self is the binary to run as guard; empty means this one (/proc/self/exe).
	Self string
	// Output says where the program's stdout and stderr go.
	Output Output
	// StateDir is where a restarted sidecar finds the guard again (see [Adopt]); it is made if it
	// does not exist, and must belong to this program alone. Empty means that nobody can adopt.
	StateDir string
	// Lead is how far ahead the deadlines lie that Start and Extend will be given, at the most. It
	// is on record before the program starts, so that a later process knows how long a guard that
	// it cannot ask may hold one. Zero: as it comes.
	Lead time.Duration
	// NewPrivs lets the program gain privileges by executing a file that has them (sudo, ping). The
	// zero value forbids it.
	NewPrivs bool
	// OOMScore is the program's oom_score_adj, whatever the sidecar's is.
	OOMScore int
	// NoCgroup does without a cgroup where one could be had.
	NoCgroup bool
	// AnswerWithin is how long the guard may take to acknowledge before it is taken for dead; 0
	// means 2 s.
	AnswerWithin time.Duration
	// Watchdog, with the path of the device (empty: /dev/watchdog) and how long the device waits
	// for food (0: as it is set).
	Watchdog        wire.Watchdog
	WatchdogPath    string
	WatchdogTimeout time.Duration
	// Log receives starts, and what goes wrong with guards.
	Log zerolog.Logger
}
