package guard

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/wire"
)

// watchdog feeds a watchdog device, which resets the host when it is not fed. It stops to be fed
// when the deadline has passed and the tree is still not gone: then nothing but a reset can end the
// program.
type watchdog struct {
	fd    int
	every time.Duration
	fed   election.Instant
	byte  [1]byte
}

const (
	wdiocSetTimeout = 0xc0045706 // _IOWR('W', 6, int)
	wdiocGetTimeout = 0x80045707 // _IOR('W', 7, int)
	// assumedTimeout is what a device has that does not tell; it is the default of the kernel's
	// drivers.
	assumedTimeout = 60 * time.Second
)

// openWatchdog returns nil if no watchdog is to be fed, or with `auto` if there is none.
func openWatchdog(s *wire.Spec) (*watchdog, error) {
	mode := wire.Watchdog(s.Watchdog)
	if mode == wire.WatchdogOff {
		return nil, nil
	}
	fd, err := unix.Open(s.WatchdogPath, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if mode == wire.WatchdogAuto {
			return nil, nil
		}
		return nil, fmt.Errorf("cannot open the watchdog, which is required: %v", &os.PathError{Op: "open", Path: s.WatchdogPath, Err: err})
	}
	timeout := assumedTimeout
	want := time.Duration(s.WatchdogTimeout)
	if want > 0 {
		// A driver may round, or refuse; it is asked afterwards what holds.
		_ = unix.IoctlSetPointerInt(fd, wdiocSetTimeout, int(max(want/time.Second, 1)))
		timeout = want
	}
	if seconds, err := unix.IoctlGetInt(fd, wdiocGetTimeout); err == nil && seconds > 0 {
		timeout = time.Duration(seconds) * time.Second
	}
	return &watchdog{fd: fd, every: timeout / 3}, nil
}

// feed is called at each turn of the loop.
func (w *watchdog) feed(now election.Instant, expired bool) {
	if w == nil || expired || w.fed != 0 && now.Sub(w.fed) < w.every {
		return
	}
	w.byte[0] = 0
	if _, err := unix.Write(w.fd, w.byte[:]); err == nil {
		w.fed = now
	}
}

// patience is how long the loop may sleep.
func (w *watchdog) patience(now election.Instant) time.Duration {
	if w == nil {
		return orphanSweep
	}
	return max(w.every-now.Sub(w.fed), time.Millisecond)
}

// release closes the device with the magic character, which tells it that this is no accident.
func (w *watchdog) release() {
	if w == nil {
		return
	}
	w.byte[0] = 'V'
	_, _ = unix.Write(w.fd, w.byte[:])
	unix.Close(w.fd)
}
