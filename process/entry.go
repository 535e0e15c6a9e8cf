package process

import (
	"os/exec"

	"github.com/tanist/tanist/process/internal/attend"
	"github.com/tanist/tanist/process/internal/guard"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

// GuardMain is the guard: what `tanist guard` runs. It is started by the drivers of this package
// only, as a re-executed copy of the running binary, and must be called from the main goroutine,
// before anything else. It returns the exit code.
func GuardMain() int { return guard.Main() }

// Attendance is a companion's side of its guard.
type Attendance = attend.Attendance

// Attend must be called by a companion before it does anything else: see [attend.Attend].
func Attend(name string) (*Attendance, error) { return attend.Attend(name) }

// StartConfined starts a child that inherits none of the capabilities that this process was given
// for its guards, and that the kernel's memory killer treats as any other process: for checks and
// hooks. noNewPrivs is as in [Config], the other way round.
func StartConfined(cmd *exec.Cmd, noNewPrivs bool) error {
	return kernel.StartConfined(cmd, noNewPrivs)
}

// ShedText gives back the pages of the binary that the start of this process touched.
func ShedText() { kernel.ShedText() }

// Watchdog says whether the guard feeds a hardware watchdog.
type Watchdog = wire.Watchdog

// The choices for a watchdog.
const (
	WatchdogOff      = wire.WatchdogOff
	WatchdogAuto     = wire.WatchdogAuto
	WatchdogRequired = wire.WatchdogRequired
)
