package daemon

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process"
)

func TestProcessAlive(t *testing.T) {
	host, err := process.HostID()
	if err != nil {
		t.Fatal(err)
	}
	alive := processAlive(host)
	child := exec.CommandContext(t.Context(), "sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pid := child.Process.Pid
	if is, known := alive(election.Controller{Host: host, PID: pid}); !is || !known {
		t.Error("a live process is not seen")
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed by us
	if is, known := alive(election.Controller{Host: host, PID: pid}); is || !known {
		t.Error("a dead process is taken for alive")
	}
	if _, known := alive(election.Controller{Host: "other/boot/ns", PID: pid}); known {
		t.Error("a process of another host is taken for known")
	}
	if is, known := alive(election.Controller{Host: host, PID: os.Getpid()}); is || !known {
		t.Error("our own PID in another incarnation is a process that is gone")
	}
}

func TestHooksGetTheirFactsInTheEnvironmentAndOnStdinAndNoArguments(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	script := filepath.Join(dir, "announce it")
	body := "#!/bin/sh\n{ echo \"$#\" \"$@\" $TANIST_EVENT $TANIST_TERM; cat; } >> " + out + "\n"
	if err := os.WriteFile(script, []byte(body), 0o755); err != nil {
		t.Fatal(err)
	}
	run := hooks(map[string][]config.Command{"on_active": {{script}, {script, "a b"}}, "pre_start": {{"false"}}}, starter{})
	env := []string{"TANIST_TERM=7", `TANIST_REASON=it "hangs"`}
	if err := run(t.Context(), "on_active", env); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	const input = `{"event":"on_active","reason":"it \"hangs\"","role":"active","term":7}` + "\n"
	if want := "0 on_active 7\n" + input + "1 a b on_active 7\n" + input; err != nil || string(got) != want {
		t.Errorf("got %q, %v", got, err)
	}
	if err := run(t.Context(), "pre_start", nil); err == nil {
		t.Error("a hook that failed was not noticed")
	}
	if err := run(t.Context(), "on_passive", nil); err != nil {
		t.Errorf("no hook: %v", err)
	}
}

// A hook that ends with others keeping its input and output open, or that reads nothing, holds up nothing.
func TestHookThatIsLateIsEndedWithItsChildren(t *testing.T) {
	begun := filepath.Join(t.TempDir(), "begun")
	run := hooks(map[string][]config.Command{"on_active": {{"sh", "-c", "sleep 1000 & touch " + begun + "; wait"}}}, starter{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // it is late once it runs, not before
		for ctx.Err() == nil {
			if _, err := os.Stat(begun); err == nil {
				cancel()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if err := run(ctx, "on_active", nil); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("got %v", err)
	}
}

// What a start needs and is missing makes a passive unfit now, and not the takeover fail later.
func TestPreFlightFindsWhatAStartNeeds(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	gone := filepath.Join(dir, "gone")
	plain := file("plain", "#!/bin/sh\n")
	for _, tc := range []struct {
		name  string
		run   config.Run
		state string
		want  string
	}{
		{"all there", config.Run{Command: []string{"./plain"}, Dir: dir, Output: "file:" + filepath.Join(dir, "log")}, dir, ""},
		{"no directory", config.Run{Command: []string{"sh"}, Dir: gone}, dir, "run.dir is unusable: stat " + gone},
		{"a file for a directory", config.Run{Command: []string{"sh"}, Dir: plain}, dir, plain + " is not a directory"},
		{"no output directory", config.Run{Command: []string{"sh"}, Output: "file:" + gone + "/log"}, dir, "run.output: cannot write " + gone},
		{"no state directory", config.Run{Command: []string{"sh"}}, gone, "state_dir: cannot write " + gone},
		{"no migration", config.Run{Command: []string{"sh"}, Migrate: config.Migrate{Command: []string{gone}}}, dir, "the migration's command can't be run"},
		{"no interpreter", config.Run{Command: []string{file("a", "#!/no/such/python -u\nx")}}, dir, "/no/such/python"},
		{"no interpreter in the PATH", config.Run{Command: []string{file("b", "#!/usr/bin/env no-such-python\n")}}, dir, "no-such-python"},
		{"options of env", config.Run{Command: []string{file("c", "#!/usr/bin/env -S no-such-python -u\n")}}, dir, ""},
		{"nothing", config.Run{Command: []string{file("d", "#!")}}, dir, ""},
		{"not a script", config.Run{Command: []string{file("e", "\x7fELF")}}, dir, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := preFlight(tc.run, tc.state, "")(t.Context())
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestPreFlight(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().String()
	err = preFlight(config.Run{Command: []string{"/no/such/controller"}}, "", port)(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is in use by another program") || !strings.Contains(err.Error(), "/no/such/controller") {
		t.Errorf("got %v", err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := preFlight(config.Run{Command: []string{"sh"}}, "", port)(t.Context()); err != nil {
		t.Errorf("fit, and refused: %v", err)
	}
}
