package kernel

import (
	"slices"
	"testing"
)

// TestNewestFirstAfterTheNumbersBeganAnew: a process that forks all the time has a low number once
// pid_max was reached, and is looked for first all the same.
func TestNewestFirstAfterTheNumbersBeganAnew(t *testing.T) {
	for last, want := range map[int][]int{
		32000: {900, 301, 300, 7, 1},
		301:   {301, 300, 7, 1, 900},
		400:   {301, 300, 7, 1, 900},
		5:     {1, 900, 301, 300, 7},
	} {
		pids := []int{1, 7, 300, 301, 900}
		newestFirst(pids, last)
		if !slices.Equal(pids, want) {
			t.Errorf("after %d: %v, want %v", last, pids, want)
		}
	}
}

func TestLastPID(t *testing.T) {
	if last := lastPID(); last < 1 || last > 1<<22 {
		t.Errorf("got %d", last)
	}
}
