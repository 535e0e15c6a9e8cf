package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// controller serves at an address until it is killed.
func controller(address string) {
	server := http.Server{Addr: address, ReadHeaderTimeout: time.Minute, Handler: http.NotFoundHandler()}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	os.Exit(1)
}

// side is one sidecar and its controller.
type side struct {
	name, file, address string
	sidecar             *exec.Cmd
	log                 string
}

// tour is two sidecars on one server, with the profile fast.
type tour struct {
	t      *testing.T
	tanist string
	sides  map[string]*side
}

// begin starts a sidecar.
func (x *tour) begin(s *side) {
	x.t.Helper()
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		x.t.Fatal(err)
	}
	defer log.Close()
	s.sidecar = exec.CommandContext(context.Background(), x.tanist, "sidecar", "-c", s.file)
	s.sidecar.Stdout, s.sidecar.Stderr = log, log
	s.sidecar.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.sidecar.Start(); err != nil {
		x.t.Fatal(err)
	}
}

// crash kills everything of a side at once, as the crash of its host does.
func (x *tour) crash(s *side) {
	out, _ := exec.CommandContext(x.t.Context(), "ps", "-eo", "pid,args").Output()
	_ = s.sidecar.Process.Kill()
	for line := range strings.Lines(string(out)) {
		var pid int
		if _, err := fmt.Sscan(line, &pid); err == nil && (strings.Contains(line, s.address) || strings.Contains(line, "guard") && strings.Contains(line, s.name)) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	_ = s.sidecar.Wait()
}

func serves(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

func (x *tour) await(s *side) time.Duration {
	x.t.Helper()
	began := time.Now()
	for !serves(s.address) {
		if time.Since(began) > patience {
			for _, s := range x.sides {
				b, _ := os.ReadFile(s.log)
				x.t.Logf("%s\n%s", s.name, b)
			}
			x.t.Fatalf("%s does not serve", s.name)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

func (x *tour) command(args ...string) {
	x.t.Helper()
	if out, err := exec.CommandContext(x.t.Context(), x.tanist, args...).CombinedOutput(); err != nil {
		x.t.Fatalf("tanist %v: %v\n%s", args, err, out)
	}
}

// ready waits until a passive could take over.
func (x *tour) ready() {
	x.t.Helper()
	var out []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		out, _ = exec.CommandContext(x.t.Context(), x.tanist, "list", "-c", x.sides["ctl-a"].file).CombinedOutput()
		if strings.Contains(string(out), "passive  ready") {
			return
		}
	}
	x.t.Fatalf("no passive is ready:\n%s", out)
}

// TestTourFast: two sidecars with the profile fast on NATS: a planned move, the crash of a host, and
// the plugin of the active killed. At no moment do both controllers serve.
func TestTourFast(t *testing.T) {
	s, spec := start(t), installed(t)
	x := &tour{t: t, tanist: filepath.Join(t.TempDir(), "tanist"), sides: map[string]*side{}}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", x.tanist, "./cmd/tanist")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	state, err := os.MkdirTemp("", "tour") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(state)
	for _, name := range []string{"ctl-a", "ctl-b"} {
		address := free(t)
		one := &side{name: name, file: filepath.Join(t.TempDir(), name+".yml"), address: address, log: filepath.Join(t.TempDir(), name+".log")}
		text := fmt.Sprintf(`kind: controller
cluster: tour
name: %s
store: plugin:nats
plugin_dirs: [%s]
plugins: {nats: {expiry_slack: 1s, config: {servers: "%s"}}}
lease: {profile: fast}
run: {command: [%s, --controller, "%s"], url: "http://%s"}
listen: {http: "%s"}
state_dir: %s
`, name, spec.Dirs[0], s.running.ClientURL(), self, address, address, free(t), filepath.Join(state, name))
		if err := os.WriteFile(one.file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		x.sides[name] = one
	}
	a, b := x.sides["ctl-a"], x.sides["ctl-b"]
	var both atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for ctx.Err() == nil {
			if serves(a.address) && serves(b.address) && serves(a.address) {
				both.Add(1)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	x.begin(a)
	x.await(a)
	x.begin(b)
	defer func() { x.crash(a); x.crash(b) }()
	x.ready()
	x.command("switchover", "-c", a.file, "--to", "ctl-b", "-y")
	x.await(b)
	x.ready()
	x.crash(b)
	t.Logf("crash of the active's host: the other serves after %v", x.await(a).Round(time.Millisecond))
	x.begin(b)
	x.ready()
	stop()
	<-watched
	if n := both.Load(); n > 0 {
		t.Errorf("both served, %d times", n)
	}
}

// free returns an address that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
