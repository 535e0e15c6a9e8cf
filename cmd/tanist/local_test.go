package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/tanist/tanist/election"
)

func TestProcessAlive(t *testing.T) {
	host, err := hostID()
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

func TestMemory(t *testing.T) {
	m := memory{path: filepath.Join(t.TempDir(), "state", "reign.json"), host: "here"}
	if h, err := m.load(); h != nil || err != nil {
		t.Errorf("nothing was saved: %v, %v", h, err)
	}
	want := election.Held{Term: 7, Lease: "l", Incarnation: "i", Reason: "first start", Previous: election.Breadcrumb{Term: 6, Clean: true}}
	if err := m.Save(want); err != nil {
		t.Fatal(err)
	}
	if h, err := m.load(); err != nil || h == nil || !reflect.DeepEqual(*h, want) {
		t.Errorf("got %+v, %v", h, err)
	}
	if h, err := (memory{m.path, "after a reboot"}).load(); h != nil || err != nil {
		t.Errorf("a reign of before a reboot was taken up: %v, %v", h, err)
	}
	if err := m.Clear(); err != nil {
		t.Fatal(err)
	}
	if h, _ := m.load(); h != nil {
		t.Error("the reign was not forgotten")
	}
	if err := m.Clear(); err != nil {
		t.Errorf("forgetting twice: %v", err)
	}
	if err := os.WriteFile(m.path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.load(); err == nil {
		t.Error("a broken file was accepted")
	}
}

func TestHooks(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	script := filepath.Join(dir, "announce")
	body := "#!/bin/sh\necho \"$@\" $TANIST_EVENT $TANIST_TERM >> " + out + "\n"
	if err := os.WriteFile(script, []byte(body), 0o755); err != nil {
		t.Fatal(err)
	}
	run := hooks("orders", map[string][]string{"on_active": {script + " one", script + " two"}, "pre_start": {"false"}})
	if err := run(t.Context(), "on_active", []string{"TANIST_TERM=7"}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if want := "one on_active active orders on_active 7\ntwo on_active active orders on_active 7\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v", got, err)
	}
	if err := run(t.Context(), "pre_start", nil); err == nil {
		t.Error("a hook that failed was not noticed")
	}
	if err := run(t.Context(), "on_passive", nil); err != nil {
		t.Errorf("no hook: %v", err)
	}
}

func TestPreFlight(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().String()
	err = preFlight([]string{"/no/such/controller"}, "", "", port)(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is in use by another program") || !strings.Contains(err.Error(), "/no/such/controller") {
		t.Errorf("got %v", err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := preFlight([]string{"sh"}, "", "", port)(t.Context()); err != nil {
		t.Errorf("fit, and refused: %v", err)
	}
}
