package testbed

import (
	"sync"
	"testing"
	"time"
)

// nap is how long the control of [Lateness] sleeps at a time; a timer may be late by onTime.
const (
	nap    = 5 * time.Millisecond
	onTime = time.Millisecond
)

// Lateness starts a control for a claim about time: a goroutine that sleeps again and again next to
// what is measured. The returned function reports by how much, in all, it has overslept since then.
// A bound extended by that still fails a program that is slow, but not one that did not run because
// the machine ran something else.
func Lateness(tb testing.TB) func() time.Duration {
	tb.Helper()
	c := &control{asleep: time.Now()}
	ended := make(chan struct{})
	tb.Cleanup(func() { close(ended) })
	go func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(nap):
			}
			c.wake(time.Now())
		}
	}()
	return func() time.Duration { return c.late(time.Now()) }
}

// control counts oversleep.
type control struct {
	mu     sync.Mutex
	total  time.Duration
	asleep time.Time // since when
}

func (c *control) wake(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total, c.asleep = c.total+c.over(now), now
}

func (c *control) late(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total + c.over(now)
}

// over returns by how much the nap is too long at an instant.
func (c *control) over(now time.Time) time.Duration {
	if over := now.Sub(c.asleep) - nap; over > onTime {
		return over
	}
	return 0
}
