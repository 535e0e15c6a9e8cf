package daemon

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/cmd/tanist/config"
)

// valve is a writer that blocks while it is shut.
type valve struct {
	mu   sync.Mutex
	got  bytes.Buffer
	shut chan struct{} // nil: open
}

func (v *valve) Write(b []byte) (int, error) {
	v.mu.Lock()
	shut := v.shut
	v.mu.Unlock()
	if shut != nil {
		<-shut
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.got.Write(b)
}

func (v *valve) text() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.got.String()
}

// TestLogDropsCountsAndReports: a stuck writer blocks nobody; dropped lines are counted, and
// reported where they are missing.
func TestLogDropsCountsAndReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &valve{shut: make(chan struct{})}
		log := openLog(config.Log{Level: "info", Format: "json"}, to)
		long := strings.Repeat("x", 1<<10)
		for range 2000 { // two megabytes
			log.Info().Str("text", long).Msg("before")
		}
		dropped := log.Dropped()
		if dropped < 900 || dropped > 1100 {
			t.Errorf("%d lines were dropped, want about half of 2000", dropped)
		}
		close(to.shut)
		synctest.Wait()
		log.Info().Msg("after")
		log.Close()
		lines := strings.Split(strings.TrimSpace(to.text()), "\n")
		if n := uint64(len(lines)); n != 2000-dropped+2 {
			t.Errorf("%d lines, want %d, the report and one more", n, 2000-dropped)
		}
		report := lines[len(lines)-2]
		if !strings.Contains(report, `"message":"log lines dropped: they were not read in time"`) || !strings.Contains(report, `"level":"warn"`) ||
			!strings.Contains(report, `"dropped":`) {
			t.Errorf("the report is %s", report)
		}
		if !strings.Contains(lines[len(lines)-1], `"message":"after"`) {
			t.Errorf("the last line is %s", lines[len(lines)-1])
		}
	})
}

// TestLogClosesWithoutAReader: the end of a process does not wait forever.
func TestLogClosesWithoutAReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &valve{shut: make(chan struct{})}
		log := openLog(config.Log{Level: "info", Format: "json"}, to)
		log.Info().Msg("last words")
		begun := time.Now()
		log.Close()
		log.Close()
		if took := time.Since(begun); took > 2*flushTimeout {
			t.Errorf("closing took %v", took)
		}
		log.Info().Msg("too late")
		close(to.shut)
		synctest.Wait()
	})
}

// flaky is a file descriptor that another program made non-blocking, and then one whose reader is
// gone.
type flaky struct{ errs []error }

func (f *flaky) Write(b []byte) (int, error) {
	if len(f.errs) == 0 {
		return len(b), nil
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return 0, err
}

func TestLogWaitsForAFullTerminalAndCountsWhatABrokenPipeSwallows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := openLog(config.Log{Level: "info", Format: "json"}, &flaky{[]error{syscall.EAGAIN, syscall.EAGAIN, syscall.EPIPE, nil}})
		log.Info().Msg("one")
		log.Close()
		if n := log.Dropped(); n != 1 {
			t.Errorf("%d lines were dropped, want 1", n)
		}
	})
	if !write(io.Discard, []byte("x")) || write(&flaky{[]error{errors.New("no")}}, []byte("x")) {
		t.Error("a write is told wrong")
	}
}
