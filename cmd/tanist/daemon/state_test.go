package daemon

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
	"github.com/tanist/tanist/process"
)

// TestStateOfAnOlderVersionIsTakenAlong: an upgraded sidecar finds the guard of the previous
// version, and no sidecar takes over the state of another controller.
func TestStateOfAnOlderVersionIsTakenAlong(t *testing.T) {
	root := t.TempDir()
	c := func(cluster, name string) *config.Controller {
		return &config.Controller{Cluster: cluster, Name: name, StateDir: root}
	}
	if a, b := stateDir(c("a", "b-c"), zerolog.Nop()), stateDir(c("a-b", "c"), zerolog.Nop()); a == b {
		t.Fatalf("both have %s", a)
	}
	old := filepath.Join(root, "a-b-c") // of ("a-b", "c"), which runs
	running := process.New(process.Config{Command: []string{"sleep", "60"}, StateDir: old, Self: testbed.Binary(t, "tanist"), Log: zerolog.Nop()})
	if err := running.Start(t.Context(), []string{"TANIST_CLUSTER=a-b", "TANIST_NAME=c"}, election.BootClock().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := running.Stop(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}()
	dir := stateDir(c("a-b", "c"), zerolog.Nop())
	if dir != filepath.Join(root, "a--b-c") {
		t.Errorf("state in %s", dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "guard.json")); err != nil {
		t.Errorf("the record was not moved: %v", err)
	}
	if to, err := os.Readlink(old); err != nil || to != "a--b-c" {
		t.Errorf("the old guard does not find its directory: %s, %v", to, err)
	}
}
