package bench

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
)

// portOf returns the port of host:port.
func portOf(t *testing.T, address string) int {
	t.Helper()
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return int(at.Port())
}

// daemon is a long-running tanist process on this machine.
type daemon struct {
	t    *testing.T
	argv []string
	log  string
	cmd  *exec.Cmd
}

func (d *daemon) start() {
	d.t.Helper()
	f, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	d.cmd = exec.Command(d.argv[0], d.argv[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = f, f
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) end(s syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatal(err)
	}
	_ = d.cmd.Wait() // it was killed
}

// TestSidecarRestartedIsNoOutage: a sidecar is killed and restarted by its supervisor, and is
// replaced by another version. Users notice nothing. The requests go through HAProxy, which `tanist
// haproxy` owns.
func TestSidecarRestartedIsNoOutage(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Skip("needs haproxy: scripts/install-deps")
	}
	s := newSite(t, 0, "")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ports := testbed.Addresses(t, 3)
	port, api, virtual := portOf(t, ports[0]), portOf(t, ports[1]), portOf(t, ports[2])
	record := filepath.Join(s.dir, "record")
	write := func(name, text string) string {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	etcd := `etcd: {endpoints: ["` + strings.Join(s.members.Endpoints(), `", "`) + `"]}`
	config := write("ctl-a.yml", fmt.Sprintf(`kind: controller
cluster: %s
name: ctl-a
%s
run:
  command: [%s, controller, "127.0.0.1:%d", %s]
  url: http://127.0.0.1:%d
health: {checks: [{name: port, tcp: "127.0.0.1:%d"}]}
listen: {http: "127.0.0.1:%d"}
state_dir: %s
`, cluster, etcd, self, port, record, port, port, api, filepath.Join(s.dir, "state")))
	proxy := write("proxy.yml", fmt.Sprintf(`kind: haproxy
cluster: %s
%s
haproxy: {config: %s/haproxy.cfg, bind: "127.0.0.1:%d", admin_socket: %s/admin.sock, master_socket: %s/master.sock, spawn: true}
listen: {http: ""}
`, cluster, etcd, s.dir, virtual, s.dir, s.dir))

	// Two copies of the binary, so that an upgrade really replaces it.
	old, next := s.binary, filepath.Join(s.dir, "tanist-next")
	b, err := os.ReadFile(old)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(next, b, 0o755); err != nil {
		t.Fatal(err)
	}
	sidecar := &daemon{t: t, argv: []string{old, "sidecar", "-c", config}, log: filepath.Join(s.dir, "ctl-a.log")}
	sidecar.start()
	t.Cleanup(func() { sidecar.end(syscall.SIGTERM) })
	haproxy := &daemon{t: t, argv: []string{old, "haproxy", "-c", proxy}, log: filepath.Join(s.dir, "proxy.log")}
	haproxy.start()
	t.Cleanup(func() { haproxy.end(syscall.SIGTERM) })
	url := fmt.Sprintf("http://127.0.0.1:%d", virtual)
	s.await("the virtual URL answers", func() bool {
		resp, err := s.client.Get(url)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == 200
	})

	serving := func() bool {
		h := host{site: s}
		return h.stateAt(fmt.Sprintf("127.0.0.1:%d", api)) == election.StateServing
	}
	l := s.load(url)
	n := times(4, 20)
	for i := range 2 * n {
		if i < n {
			sidecar.end(syscall.SIGKILL) // a crash
		} else {
			sidecar.end(syscall.SIGUSR2) // an upgrade
			sidecar.argv[0] = []string{next, old}[i%2]
		}
		sidecar.start()
		s.await("the next process serves", serving)
		before := l.count()
		s.await("users continue", func() bool { return l.count() >= before+20 })
	}
	asked, failed := l.end()
	t.Logf("%d crashes, %d upgrades, %d requests through the virtual URL, %d failed, %d lives of the controller", n, n, asked, failed,
		len(readLives(t, record)))
	if failed > 0 || len(readLives(t, record)) != 1 {
		t.Errorf("%d requests failed, and the controller had %d lives, want 1", failed, len(readLives(t, record)))
		out, _ := os.ReadFile(sidecar.log)
		t.Logf("%s", out[max(0, len(out)-6000):])
	}
}
