package guard

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

// companionWithin bounds what a companion needs to be ready.
const companionWithin = 10 * time.Second

// companion is the guard's side.
type companion struct {
	pid, fd int    // its pidfd, or -1
	page    *int64 // holds the deadline; nil without a companion
	told    bool   // it was told to end
	lost    bool   // it ended without having been told to
}

// tell moves the deadline: one store to shared memory, so that nothing can block and nothing can be
// late.
func (c *companion) tell(deadline election.Instant) {
	if c.page != nil {
		atomic.StoreInt64(c.page, int64(deadline))
	}
}

// accompany starts the companion, if there is to be one, and returns when it is ready.
func (g *guard) accompany() error {
	s, c := g.spec, &g.beside
	if len(s.Companion) == 0 {
		return nil
	}
	words := strings.Join(s.Companion, " ")
	input := int(s.InputFD)
	defer unix.Close(input) // the program must not find it here
	page, err := unix.MemfdCreate("deadline", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cannot start %s: %v", words, err)
	}
	defer unix.Close(page)
	if err := unix.Ftruncate(page, kernel.PageSize); err != nil {
		return fmt.Errorf("cannot start %s: %v", words, err)
	}
	if c.page, err = kernel.MapPage(page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return fmt.Errorf("cannot start %s: %v", words, err)
	}
	c.tell(g.deadline)
	var ready [2]int
	if err := unix.Pipe2(ready[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("cannot start %s: %v", words, err)
	}
	defer unix.Close(ready[0])
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(ready[1])
		return fmt.Errorf("cannot open /dev/null: %v", err)
	}
	defer unix.Close(null)
	c.pid, c.fd, err = g.spawnAs("/proc/self/exe", s.Companion, &syscall.ProcAttr{
		Dir: "/", Env: s.CompanionEnv, Files: []uintptr{uintptr(null), 2, 2, uintptr(page), uintptr(input), uintptr(ready[1])},
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	})
	unix.Close(ready[1])
	if err != nil {
		return fmt.Errorf("cannot start %s: %v", words, err)
	}
	until := min(election.BootClock().Add(companionWithin), g.deadline)
	fds := []unix.PollFd{{Fd: int32(ready[0]), Events: unix.POLLIN}}
	for {
		left := until.Sub(election.BootClock())
		if left <= 0 {
			return fmt.Errorf("cannot start %s: it was not ready in time", words)
		}
		if n, err := unix.Poll(fds, int(min(left, time.Hour).Milliseconds())+1); n > 0 && err == nil {
			break
		}
	}
	n, err := unix.Read(ready[0], g.in[:])
	switch said := string(g.in[:max(n, 0)]); {
	case err != nil || n == 0:
		return fmt.Errorf("cannot start %s: it ended at once", words)
	case said != wire.CompanionReady:
		return errors.New(said)
	}
	return nil
}

// abandon undoes accompany.
func (c *companion) abandon() {
	if c.pid == 0 {
		return
	}
	_ = unix.Kill(c.pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(c.pid, nil, unix.WALL, nil); err != unix.EINTR { //nolint:errorlint // a bare errno
			break
		}
	}
	c.told = true
	c.reaped()
}

func (c *companion) reaped() {
	c.lost = !c.told
	c.pid = 0
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// lonely tells whether the companion is there and nothing else below the guard.
func (g *guard) lonely() bool {
	if g.beside.pid == 0 || g.spec.Mode == wire.ModeExec && !g.exited {
		return false
	}
	g.hunter.Find(nil)
	return g.hunter.N == 1 && int(g.hunter.PIDs[0]) == g.beside.pid
}

// dismiss ends the companion if the program has ended.
func (c *companion) dismiss(g *guard, now election.Instant) {
	if c.told {
		return
	}
	// a unit's cgroup has the program only
	if g.spec.Mode == wire.ModeUnit && g.populated() || !g.over(now) {
		return
	}
	c.told = true
	c.tell(0)
	_ = unix.Kill(c.pid, unix.SIGKILL)
}

// judgeCompanion ends the tree if the companion has left it.
func (g *guard) judgeCompanion(now election.Instant) {
	if g.beside.lost && !g.killing {
		g.startKilling(wire.CauseCompanion, now)
		g.strike()
	}
}
