package guard

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process/internal/wire"
)

// TestStartIsThoughtOverOnceMore: between the companion's readiness and the program's first
// instruction the deadline may have passed, the sidecar may have ended, or have asked for a stop.
func TestStartIsThoughtOverOnceMore(t *testing.T) {
	for name, test := range map[string]struct {
		change func(g *guard, sidecar int)
		want   string
	}{
		"nothing has changed":  {func(*guard, int) {}, ""},
		"the deadline":         {func(g *guard, _ int) { g.deadline = election.BootClock() }, "the lease deadline has passed"},
		"the sidecar has died": {func(_ *guard, sidecar int) { _ = unix.Shutdown(sidecar, unix.SHUT_RDWR) }, "the sidecar has ended"},
		"a stop": {func(_ *guard, sidecar int) {
			r := wire.Record{Kind: wire.KindStop, A: int64(election.BootClock().Add(time.Minute))}
			_, _ = unix.Write(sidecar, r.Put(make([]byte, wire.RecordMax)))
		}, "it was to be stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pair[1])
			g := &guard{
				spec: &wire.Spec{Argv: []string{"ordersd"}, LockFD: -1}, control: pair[0], listen: -1, mainFD: -1, timer: -1,
				deadline: election.BootClock().Add(time.Minute), killAt: election.Never,
			}
			defer func() {
				if g.control >= 0 {
					unix.Close(g.control)
				}
			}()
			test.change(g, pair[1])
			err = g.mayStillStart()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("err = %v, want %q", err, test.want)
			}
		})
	}
}
