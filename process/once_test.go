package process

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/process/torture"
)

// TestRunOnceReportsHowItEnded: status and first line; a program that does not end is ended.
func TestRunOnceReportsHowItEnded(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, script, want string
		within             time.Duration
	}{
		{"good", "exit 0", "", time.Minute},
		{"bad", "echo; echo 'no key listen in orders.conf'; echo more; exit 3", "exit status 3: no key listen in orders.conf", time.Minute},
		{"silent", "exit 4", "exit status 4", time.Minute},
		{"endless", "echo reading; exec sleep 1000", "it did not end within 5s: reading", 5 * time.Second},
		{"with its environment", `test "$MODE" = passive`, "", time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			err := RunOnce(t.Context(), Config{Command: []string{"sh", "-c", tc.script}, Env: []string{"MODE=passive"}}, tc.within)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	t.Run("not there", func(t *testing.T) {
		t.Parallel()
		if err := RunOnce(t.Context(), Config{Command: []string{"/no/such/program"}}, time.Minute); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
			t.Errorf("got %v", err)
		}
	})
}

// TestRunOnceLeavesNothing: daemons in sessions of their own are gone too when it returns.
func TestRunOnceLeavesNothing(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, noCgroup bool) {
		mark, ready := newMark(t), filepath.Join(t.TempDir(), "ready")
		command := torture.Command(3, ready)
		script := `"$@" & while ! test -e ` + ready + `; do sleep 0.01; done`
		cfg := Config{Command: append([]string{"sh", "-c", script, "sh"}, command...), Env: []string{torture.Env(mark)}, NoCgroup: noCgroup}
		if err := RunOnce(t.Context(), cfg, time.Minute); err != nil {
			t.Error(err)
		}
		mustBeGone(t, mark)
	})
}
