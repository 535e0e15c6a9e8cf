package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

const tell = `grep -E "^(CapInh|CapPrm|CapEff|CapAmb|NoNewPrivs):" /proc/self/status >"$1/$0"; cat /proc/self/oom_score_adj >>"$1/$0"`

// testGifted is a sidecar that was given capabilities for its guards, and is spared by the OOM
// killer. What it starts tells what it has got.
func testGifted(dir string) int {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("300"), 0); err != nil {
		fmt.Println(err)
		return 1
	}
	say := func(name string) []string { return []string{"sh", "-c", tell, name, dir} }
	keep := func(name string, cfg Config) {
		cfg.Command, cfg.Log, cfg.Output = say(name), zerolog.New(os.Stderr), Output{Line: func([]byte) {}}
		e := New(cfg)
		if err := e.Start(context.Background(), nil, soon(time.Minute)); err != nil {
			fmt.Println(name, err)
			return
		}
		<-e.Exited()
		if err := e.Stop(context.Background(), 0); err != nil {
			fmt.Println(name, err)
		}
	}
	keep("program", Config{OOMScore: 300})
	keep("elevated", Config{OOMScore: 400, NewPrivs: true})
	argv := say("check")
	// it gets its score a moment after its start
	argv[2] = "n=0; while read -r score </proc/$$/oom_score_adj; [ $score = 300 ] && [ $n -lt 1200 ]; do sleep 0.05; n=$((n+1)); done; " + argv[2]
	cmd := exec.Command(argv[0], argv[1:]...)
	if err := errors.Join(StartConfined(cmd, true), cmd.Wait()); err != nil {
		fmt.Println(err)
		return 1
	}
	argv = say("sidecar") // what a child gets that nobody takes anything from
	if err := exec.Command(argv[0], argv[1:]...).Run(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// TestGiftsAreNotPassedOn: the capabilities of a sidecar that is not root are for its guards.
// Neither the program nor a check gets them, nor a way to others, and the OOM killer knows each of
// them by its own score.
func TestGiftsAreNotPassedOn(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("/tmp", "tanist-gifts") // nobody may enter it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "gifted", dir)
	cmd.Dir = dir // that of the tests may be closed to nobody
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: []uintptr{unix.CAP_SYS_NICE, unix.CAP_IPC_LOCK},
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	if !strings.Contains(out.String(), `"priority":"SCHED_RR"`) {
		t.Errorf("the guard did not get what it was for it:\n%s", out.String())
	}
	nothing := regexp.MustCompile(`^CapInh:\t0+\nCapPrm:\t0+\nCapEff:\t0+\nCapAmb:\t0+\nNoNewPrivs:\t([01])\n(-?[0-9]+)\n$`)
	for name, want := range map[string][2]string{"program": {"1", "300"}, "elevated": {"0", "400"}, "check": {"1", "0"}} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		m := nothing.FindStringSubmatch(string(b))
		if err != nil || m == nil || m[1] != want[0] || m[2] != want[1] {
			t.Errorf("%s: %v\n%s\n%s", name, err, b, out.String())
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "sidecar")); err != nil || nothing.Match(b) {
		t.Errorf("the sidecar had nothing to pass on: %v\n%s", err, b)
	}
}

// A program has the score that is configured for it, whatever that of the sidecar and of its guard.
func TestOOMScoreIsTheConfiguredOne(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	before, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile("/proc/self/oom_score_adj", before, 0) //nolint:errcheck // it was possible a moment ago
	for _, want := range []int{0, 700} {
		out := filepath.Join(t.TempDir(), "out")
		// The child of the program too, which is forked before anybody outside could change
		// anything.
		e := newExec(t, Config{Command: []string{"sh", "-c", `sh -c 'cat /proc/self/oom_score_adj' >"$0"`, out}, OOMScore: want})
		if err := e.Start(t.Context(), nil, soon(time.Minute)); err != nil {
			t.Fatal(err)
		}
		awaitClosed(t, "exit", e.Exited())
		if b, err := os.ReadFile(out); err != nil || string(b) != fmt.Sprintln(want) {
			t.Errorf("got %q (%v), want %d", b, err, want)
		}
	}
}
