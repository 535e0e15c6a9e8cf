package e2e

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
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tanist/tanist/internal/testbed"
)

// tanist runs the binary until it exits, which it must do by itself.
func tanist(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, program(t, "tanist"), args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("tanist %s did not end within %v:\n%s", strings.Join(args, " "), patience, errOut.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// address returns an address on loopback that was free a moment ago.
func address(t *testing.T) string {
	t.Helper()
	return testbed.Address(t)
}

// etcdServer starts a private etcd server.
func etcdServer(t *testing.T) string {
	t.Helper()
	return newEtcd(t).client
}

// ownEtcd is an etcd server that can be stopped and started again.
type ownEtcd struct {
	*testing.T
	dir, client, peer string
	cmd               *exec.Cmd
}

func newEtcd(t *testing.T) *ownEtcd {
	t.Helper()
	e := &ownEtcd{T: t, dir: filepath.Join(testbed.Dir(t), "etcd"), client: "http://" + address(t), peer: "http://" + address(t)}
	e.start()
	t.Cleanup(e.stop) // its data is thrown away
	return e
}

func (e *ownEtcd) stop() {
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
}

// start returns when the server answers.
func (e *ownEtcd) start() {
	e.Helper()
	e.cmd = exec.Command(program(e.T, "tanist-lab"), "etcd", "--dir", e.dir, "--client", e.client, "--peer", e.peer)
	var out bytes.Buffer
	e.cmd.Stdout, e.cmd.Stderr = &out, &out
	if err := e.cmd.Start(); err != nil {
		e.Fatal(err)
	}
	store, err := clientv3.New(clientv3.Config{Endpoints: []string{e.client}, Logger: zap.NewNop()})
	if err != nil {
		e.Fatal(err)
	}
	defer store.Close()
	ctx, cancel := context.WithTimeout(e.Context(), patience)
	defer cancel()
	for {
		attempt, done := context.WithTimeout(ctx, 5*time.Second)
		_, err := store.Get(attempt, "/")
		done()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			e.Fatalf("etcd does not answer: %v\n%s", err, out.String())
		}
	}
}

// controllerFile writes a configuration whose controller creates the file mark if it is ever
// started.
func controllerFile(t *testing.T, change func(map[string]string)) (file, mark string) {
	t.Helper()
	dir := testbed.Dir(t)
	mark = filepath.Join(dir, "started")
	v := map[string]string{
		"etcd": "http://" + address(t), "name": "ctl-x", "command": fmt.Sprintf("[/bin/sh, -c, 'touch %s; sleep 60']", mark),
		"http": address(t), "more": "", "lease": "{profile: fast}",
	}
	change(v)
	file = filepath.Join(dir, "ctl.yml")
	text := fmt.Sprintf(`kind: controller
cluster: e2e
name: %s
etcd: {endpoints: ["%s"]}
lease: %s
run:
  command: %s
  url: http://%s
listen: {http: "%s"}
state_dir: %s
%s`, v["name"], v["etcd"], v["lease"], v["command"], address(t), v["http"], dir, v["more"])
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, mark
}

// TestBadInput: bad input leads to one clear message and the right exit code, and starts no
// controller.
func TestBadInput(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	store := etcdServer(t)
	at := regexp.MustCompile(`ctl\.yml:\d+:\d+`)
	for _, tc := range []struct {
		name   string
		change func(map[string]string)
		code   int
		say    []string // regular expressions
		places int      // mistakes reported with file:line:column
	}{
		{"an unknown key", func(v map[string]string) { v["more"] = "leese: {}\n" }, 78, []string{`leese`}, 1},
		{"a wrong type", func(v map[string]string) { v["more"] = "yield_wait: soon\n" }, 78, []string{`yield_wait`, `soon`}, 1},
		{"an impossible timing", func(v map[string]string) { v["lease"] = "{ttl: 2s, validity: 10s}" }, 78, []string{`lease`, `10s`}, 1},
		{"no command", func(v map[string]string) { v["command"] = "[]" }, 78, []string{`run\.command`}, 1},
		{
			"all of them at once",
			func(v map[string]string) {
				v["command"], v["more"] = "[]", "leese: {}\nyield_wait: soon\n"
			},
			78,
			[]string{`leese`, `yield_wait`, `run\.command`},
			3,
		},
		{"a command that does not exist", func(v map[string]string) { v["command"], v["etcd"] = "[/no/such/program]", store }, 78, []string{`/no/such/program`}, 0},
		{"an unreachable store", func(map[string]string) {}, 69, []string{`etcd`, `127\.0\.0\.1`}, 0},
		{"a port in use", func(v map[string]string) { v["etcd"], v["http"] = store, strings.TrimPrefix(store, "http://") }, 1, []string{`listen\.http`, `in use`}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file, mark := controllerFile(t, tc.change)
			code, out, msg := tanist(t, "sidecar", "-c", file)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			for _, say := range tc.say {
				if !regexp.MustCompile(say).MatchString(msg) {
					t.Errorf("the message does not match %s", say)
				}
			}
			if found := len(at.FindAllString(msg, -1)); found < tc.places {
				t.Errorf("the message names %d places, want %d", found, tc.places)
			}
			if _, err := os.Stat(mark); err == nil {
				t.Error("the controller was started")
			}
			if t.Failed() {
				t.Logf("stdout: %s\nstderr: %s", out, msg)
			}
		})
	}
}

// TestRefusedLogin: the store requires a login, and the sidecar has no password.
func TestRefusedLogin(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	store := etcdServer(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{store}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, step := range []func() error{
		func() error { _, err := client.UserAdd(ctx, "root", "secret"); return err },
		func() error { _, err := client.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := client.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	file, mark := controllerFile(t, func(v map[string]string) { v["etcd"] = store })
	code, _, msg := tanist(t, "sidecar", "-c", file)
	if code != 77 {
		t.Errorf("exit code %d, want 77: %s", code, msg)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the controller was started")
	}
}

// TestSecondProcessWithTheSameName: while ctl-a of a running cluster lives, no other process can be
// ctl-a, and the first is not disturbed.
func TestSecondProcessWithTheSameName(t *testing.T) {
	l := start(t, "--profile", "default") // a busy machine costs no lease
	file, mark := controllerFile(t, func(v map[string]string) { v["name"], v["etcd"] = "ctl-a", l.Etcd })
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Replace(text, []byte("cluster: e2e"), []byte("cluster: lab"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, msg := tanist(t, "sidecar", "-c", file)
	if code == 0 || !strings.Contains(msg, "ctl-a") {
		t.Errorf("exit code %d, message %q", code, msg)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the second controller was started")
	}
	if code, out, msg := tanist(t, "list", "-c", l.Sides[0].Config); code != 0 || !strings.Contains(out, "term 1") {
		t.Errorf("the first one was disturbed: exit code %d\n%s%s", code, out, msg)
	}
}
