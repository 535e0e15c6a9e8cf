package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// Companion is a process that serves the program and must not outlive it: the guard starts it before the program, as its own
// user, and kills it with the tree. It is not asked to end, so that it still serves a program that is being stopped; when nothing of the
// program is left it is killed. It lives on without the sidecar, as the program does. If it ends by itself the tree is
// killed, and [Exec.Exit] says so: a program without it is a failed one.
//
// It is the same binary as the guard, and calls [Attend] first.
type Companion struct {
	Args  []string // of the binary: a subcommand that no user is shown
	Env   []string // its whole environment
	Input []byte   // what it is told. Secrets may be in it: nobody but the guard and the companion sees it.
}

// Accompany sets the companion of the next Start; nil means that there is none. One that is running is not touched.
func (d *driver) Accompany(c *Companion) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.companion = c
}

// companionWithin bounds what a companion needs to be ready.
const companionWithin = 10 * time.Second

// File descriptors that a companion is started with.
const (
	pageFD  = 3 // the deadline, in memory shared with the guard
	inputFD = 4
	readyFD = 5
)

const pageSize = 4096

// companion is the guard's side.
type companion struct {
	pid, fd int    // its pidfd, or -1
	page    *int64 // holds the deadline; nil without a companion
	told    bool   // it was told to end
	lost    bool   // it ended without having been told to
}

// tell moves the deadline: one store to shared memory, so that nothing can block and nothing can be late.
func (c *companion) tell(deadline election.Instant) {
	if c.page != nil {
		atomic.StoreInt64(c.page, int64(deadline))
	}
}

func mapPage(fd, prot int) (*int64, error) {
	b, err := unix.Mmap(fd, 0, pageSize, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*int64)(unsafe.Pointer(unsafe.SliceData(b))), nil
}

// accompany starts the companion, if there is to be one, and returns when it is ready.
func (g *guard) accompany() error {
	s, c := g.spec, &g.beside
	if len(s.companion) == 0 {
		return nil
	}
	words := strings.Join(s.companion, " ")
	input := int(s.inputFD)
	defer unix.Close(input) // the program must not find it here
	page, err := unix.MemfdCreate("deadline", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cannot start %s: %v", words, err)
	}
	defer unix.Close(page)
	if err := unix.Ftruncate(page, pageSize); err != nil {
		return fmt.Errorf("cannot start %s: %v", words, err)
	}
	if c.page, err = mapPage(page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
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
	c.pid, c.fd, err = g.spawnAs("/proc/self/exe", s.companion, &syscall.ProcAttr{
		Dir: "/", Env: s.companionEnv, Files: []uintptr{uintptr(null), 2, 2, uintptr(page), uintptr(input), uintptr(ready[1])},
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
	case said != companionReady:
		return errors.New(said)
	}
	return nil
}

const companionReady = "ready"

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
	if g.beside.pid == 0 || g.spec.mode == modeExec && !g.exited {
		return false
	}
	g.hunter.find(nil)
	return g.hunter.n == 1 && int(g.hunter.pids[0]) == g.beside.pid
}

// dismiss ends the companion if the program has ended.
func (c *companion) dismiss(g *guard, now election.Instant) {
	if c.told {
		return
	}
	if g.spec.mode == modeUnit && g.populated() || !g.over(now) { // a unit's cgroup has the program only
		return
	}
	c.told = true
	c.tell(0)
	_ = unix.Kill(c.pid, unix.SIGKILL)
}

// judgeCompanion ends the tree if the companion has left it.
func (g *guard) judgeCompanion(now election.Instant) {
	if g.beside.lost && !g.killing {
		g.startKilling(causeCompanion, now)
		g.strike()
	}
}

// Attendance is the companion's side. Its methods are safe for concurrent use.
type Attendance struct {
	Input []byte // as in [Companion]
	page  *int64
	ready *os.File
}

// Attend must be called by a companion before it does anything else. From then on no other process of the same user can
// look into it, and only the guard ends it: signals that service managers and terminals send to everybody have no effect.
func Attend(name string) (*Attendance, error) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("cannot protect the memory: %v", err)
	}
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGPIPE, unix.SIGTSTP,
		unix.SIGTTIN, unix.SIGTTOU)
	setName(name)
	for _, fd := range []int{pageFD, inputFD, readyFD} {
		unix.CloseOnExec(fd)
	}
	a := &Attendance{ready: os.NewFile(readyFD, "ready")}
	input := os.NewFile(inputFD, "input")
	defer input.Close()
	page, err := mapPage(pageFD, unix.PROT_READ)
	if err != nil {
		return nil, errors.New("no guard has started it")
	}
	a.page = page
	unix.Close(pageFD)
	if a.Input, err = io.ReadAll(io.NewSectionReader(input, 0, 1<<20)); err != nil {
		return nil, fmt.Errorf("cannot read what to do: %v", err)
	}
	return a, nil
}

// Deadline returns the instant at which the guard kills the tree; 0 when it has begun to. It may move on until it has passed,
// and is final then. A companion must not act at or after it.
func (a *Attendance) Deadline() election.Instant { return election.Instant(atomic.LoadInt64(a.page)) }

// Ready tells the guard that the program may be started, or why it can't be. It is called once.
func (a *Attendance) Ready(err error) {
	text := companionReady
	if err != nil {
		text = err.Error()
	}
	_, _ = a.ready.WriteString(text) // a guard that is gone takes this process along
	_ = a.ready.Close()
}
