package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Limits of what Tanist may cost.
const (
	maxRSS    = 30 << 20 // bytes, of a sidecar
	maxCPU    = 0.5      // per cent of a core, of a sidecar
	maxBinary = 30 << 20 // bytes
)

// TestBinarySize: the production binary, stripped, is at most 30 MiB.
func TestBinarySize(t *testing.T) {
	info, err := os.Stat(program(t, "tanist"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("tanist is %.1f MiB", float64(info.Size())/(1<<20))
	if info.Size() > maxBinary {
		t.Errorf("tanist is %d bytes, want at most %d", info.Size(), maxBinary)
	}
}

// rss returns the resident memory of a process in bytes.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("process %d has no VmRSS", pid)
	return 0
}

// cpu returns the CPU time that all threads of a process have used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("process %d has no threads: %v", pid, err)
	}
	var sum time.Duration
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // the thread ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// TestSteadyState: an idle sidecar needs at most 30 MiB and 0.5 % of a core. Both sides are
// measured with the default lease, while users and agents are at work.
func TestSteadyState(t *testing.T) {
	for _, profile := range []string{"default", "fast"} {
		t.Run(profile, func(t *testing.T) {
			l := start(t, "--profile", profile)
			// On a busy machine the start takes longer, so the short form looks more than once.
			window, slack, looks := 5*time.Second, 3.0, 4
			if *full {
				window, slack, looks = 30*time.Second, 1, 1
			}
			time.Sleep(3 * time.Second) // the start is not part of the steady state
			// The fast profile writes a beat five times a second, and is documented to cost more. The
			// limit is for the default one.
			share := l.shares(t, profile, window)
			for ; profile == "default" && looks > 1 && slices.Max(slices.Collect(maps.Values(share))) > slack*maxCPU; looks-- {
				share = l.shares(t, profile, window)
			}
			for name, used := range share {
				if profile == "default" && used > slack*maxCPU {
					t.Errorf("%s uses %.2f %% of a core, want at most %.2f", name, used, slack*maxCPU)
				}
			}
		})
	}
}

// shares returns the percentage of a core that each sidecar uses over a time, and checks its memory.
func (l *lab) shares(t *testing.T, profile string, window time.Duration) map[string]float64 {
	t.Helper()
	before, share := map[string]time.Duration{}, map[string]float64{}
	for _, s := range l.Sides {
		before[s.Name] = cpu(t, l.PIDs[s.Name])
	}
	begun := time.Now()
	time.Sleep(window)
	for _, s := range l.Sides {
		used := cpu(t, l.PIDs[s.Name]) - before[s.Name]
		share[s.Name] = 100 * used.Seconds() / time.Since(begun).Seconds()
		memory := rss(t, l.PIDs[s.Name])
		t.Logf("%s, lease profile %s: %.1f MiB, %.2f %% of a core", s.Name, profile, float64(memory)/(1<<20), share[s.Name])
		if memory > maxRSS {
			t.Errorf("%s has %d bytes, want at most %d", s.Name, memory, maxRSS)
		}
	}
	return share
}
