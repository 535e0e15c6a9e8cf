package testbed

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestLatenessIsWhatTheMachineTook: nothing while the control runs on time; all that it overslept
// otherwise, even before it has woken.
func TestLatenessIsWhatTheMachineTook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := Lateness(t)
		time.Sleep(time.Second + nap/2)
		if got := late(); got != 0 {
			t.Errorf("late by %v on a machine that is never late", got)
		}
	})
	c, now := &control{}, time.Now()
	c.asleep = now
	for _, wake := range []time.Duration{nap, nap + onTime, nap + 20*time.Millisecond, nap} {
		now = now.Add(wake)
		c.wake(now)
	}
	if got, want := c.late(now.Add(nap+300*time.Millisecond)), 320*time.Millisecond; got != want {
		t.Errorf("late by %v, want %v", got, want)
	}
}
