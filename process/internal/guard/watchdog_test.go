package guard

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

func TestWatchdogStarvesAfterTheDeadline(t *testing.T) {
	w := watchdog{fd: -1, every: time.Second}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	w.fd = p[1]
	now := election.BootClock()
	w.feed(now, false)
	w.feed(now.Add(500*time.Millisecond), false)
	w.feed(now.Add(time.Second), false)
	w.feed(now.Add(time.Hour), true)
	b := make([]byte, 10)
	if n, _ := unix.Read(p[0], b); n != 2 {
		t.Errorf("fed %d times", n)
	}
}
