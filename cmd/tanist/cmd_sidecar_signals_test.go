package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/internal/testbed"
)

// patience bounds every wait for something that must happen; test machines are busy.
const patience = time.Minute

// edit replaces a text that the file must contain.
func edit(t *testing.T, path, old, now string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), old, now, 1)
	if text == string(b) {
		t.Fatalf("%s has no %q", path, old)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestReloadWithATypoLetsGoOfNothing: SIGUSR2 with a file that the next process would refuse
// changes nothing and logs the reason; with a valid file the process detaches.
func TestReloadWithATypoLetsGoOfNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := etcdtest.Start(t, 1)
	start, access := soloSidecar(t, servers.Endpoints()[0])
	file := access[1]
	p := testbed.Start(t, start())
	p.Await(`"state":"serving"`, patience)
	edit(t, file, "state_dir:", "sttae_dir:")
	p.Signal(syscall.SIGUSR2)
	p.Await(`"level":"error".*sttae_dir.*"message":"reload refused: nothing changed"`, patience)
	if code := quiet(t.Context(), append([]string{"is-active", "ctl-a"}, "-C", "orders", "--endpoints", servers.Endpoints()[0], "--prefix", prefixOf(t, file))...); code != 0 {
		t.Errorf("it is not active any more: exit code %d", code)
	}
	edit(t, file, "sttae_dir:", "state_dir:")
	p.Signal(syscall.SIGUSR2)
	if err := p.End(patience); err != nil {
		t.Errorf("it did not detach: %v", err)
	}
	p.Await(`"reason":"detached"`, patience)
	// The next process adopts what was left, and ends it.
	next := testbed.Start(t, start())
	next.Await(`"state":"serving"`, patience)
	next.Signal(syscall.SIGTERM)
	if err := next.End(patience); err != nil {
		t.Errorf("the end of the next one: %v", err)
	}
}

// prefixOf returns the prefix of the keys that a file of soloSidecar names, whatever else is wrong
// with it.
func prefixOf(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "prefix: ")
	prefix, _, _ := strings.Cut(rest, "}")
	return prefix
}

// TestHangupRereadsAndQuitEndsAsPlanned: neither is a crash.
func TestHangupRereadsAndQuitEndsAsPlanned(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := etcdtest.Start(t, 1)
	start, access := soloSidecar(t, servers.Endpoints()[0])
	p := testbed.Start(t, start())
	p.Await(`"state":"serving"`, patience)
	edit(t, access[1], "state_dir:", "priority: 7\nlog: {level: debug}\nstate_dir:")
	p.Signal(syscall.SIGHUP)
	p.Await(`"needs_restart":\["priority"\].*"message":"configuration reloaded"`, patience)
	edit(t, access[1], "priority: 7", "priority: seven")
	p.Signal(syscall.SIGHUP)
	p.Await(`"level":"error".*priority.*"message":"configuration refused: nothing changed"`, patience)
	edit(t, access[1], "priority: seven", "priority: 7")
	p.Signal(syscall.SIGQUIT)
	if err := p.End(patience); err != nil || strings.Contains(p.Text(), "goroutine ") {
		t.Errorf("SIGQUIT was no planned end: %v", err)
	}
	keysOnce(t, p.Text())
	hasReleased(t, access)
}

// TestWhatIsIgnoredAtTheStartStaysIgnored: nohup, and shells that start a command in the
// background, rely on that.
func TestWhatIsIgnoredAtTheStartStaysIgnored(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := etcdtest.Start(t, 1)
	start, access := soloSidecar(t, servers.Endpoints()[0])
	sidecar := start()
	told := filepath.Join(t.TempDir(), "told")
	run := []string{sidecar.Path, "run", "-C", "jobs", "--endpoints", servers.Endpoints()[0], "--", "sh", "-c", "while ! test -e " + told + "; do sleep 0.05; done; echo down"}
	for name, args := range map[string][]string{"sidecar": sidecar.Args, "run": run} {
		t.Run(name, func(t *testing.T) {
			p := testbed.Start(t, exec.Command("sh", append([]string{"-c", `trap '' HUP INT; exec "$@"`, "sh"}, args...)...))
			p.Await(`"state":"serving"`, patience)
			p.Signal(syscall.SIGINT)
			p.Signal(syscall.SIGHUP)
			if name == "run" {
				if err := os.WriteFile(told, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				p.Await("down", patience)
			} else {
				p.Signal(syscall.SIGTERM)
			}
			if err := p.End(patience); err != nil || strings.Contains(p.Text(), "interrupt") {
				t.Errorf("it heeded what is ignored: %v", err)
			}
		})
	}
	hasReleased(t, access)
}

// TestAgentwatchSurvivesAHangup: its agent does too. It is a second line of defence against a
// logrotate that signals every process.
func TestAgentwatchSurvivesAHangup(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := etcdtest.Start(t, 1)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := testbed.Dir(t)
	tanist, file := filepath.Join(dir, "tanist"), filepath.Join(dir, "agt-1.yml")
	if err := os.Symlink(self, tanist); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("kind: agent\ncluster: orders\nname: agt-1\netcd: {endpoints: [%q]}\nrun: {command: [sleep, \"60\"]}\nretries: {count: 0}\nlisten: {http: \"\"}\nstate_file: %s\n",
		servers.Endpoints()[0], filepath.Join(dir, "state"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := testbed.Start(t, exec.Command(tanist, "agentwatch", "-c", file))
	p.Await(`"message":"started"`, patience)
	p.Signal(syscall.SIGHUP)
	p.Await(`"message":"configuration reloaded"`, patience)
	p.Signal(syscall.SIGQUIT)
	if err := p.End(patience); err != nil || strings.Contains(p.Text(), "goroutine ") {
		t.Errorf("SIGQUIT was no planned end: %v", err)
	}
	keysOnce(t, p.Text())
}
