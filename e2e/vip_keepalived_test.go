package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// keepalived starts keepalived on a host as a cold standby is usually configured: adverts every 0.1
// s, notify scripts that start and stop the controller, and a check once a second, which is
// keepalived's shortest interval.
func (h *vipHost) keepalived(priority int) {
	h.t.Helper()
	path := func(name string) string { return filepath.Join(h.dir, h.name+"-"+name) }
	write := func(name, text string) string {
		if err := os.WriteFile(path(name), []byte(text), 0o755); err != nil {
			h.t.Fatal(err)
		}
		return path(name)
	}
	start := write("start", fmt.Sprintf(`#!/bin/sh
TANIST_NAME=%s setsid %s vip-controller </dev/null >/dev/null 2>&1 &
echo $! >%s
until %s vip-check 127.0.0.1:8080 2>/dev/null; do sleep 0.01; done
touch %s
`, h.name, h.self, path("pid"), h.self, path("master")))
	stop := write("stop", fmt.Sprintf(`#!/bin/sh
rm -f %s
[ -e %s ] && kill -KILL $(cat %s)
rm -f %s
exit 0
`, path("master"), path("pid"), path("pid"), path("pid")))
	check := write("check", fmt.Sprintf(`#!/bin/sh
[ -e %s ] || exit 0
exec %s vip-check 127.0.0.1:8080
`, path("master"), h.self))
	conf := write("keepalived.conf", fmt.Sprintf(`global_defs {
  script_user root
}
vrrp_script chk {
  script "%s"
  interval 1
  timeout 1
  fall 1
  rise 1
}
vrrp_instance V {
  state BACKUP
  nopreempt
  interface eth0
  virtual_router_id 51
  priority %d
  version 3
  advert_int 0.1
  virtual_ipaddress {
    %s/24 dev eth0
  }
  virtual_ipaddress_excluded {
    %s/64 dev eth0
  }
  track_script {
    chk
  }
  notify_master "%s"
  notify_backup "%s"
  notify_fault "%s"
  notify_stop "%s"
}
`, check, priority, vip4, vip6, start, stop, stop, stop))
	if err := os.Chmod(conf, 0o644); err != nil {
		h.t.Fatal(err)
	}
	h.boot("keepalived", "-n", "-l", "-P", "-f", conf, "-p", path("k.pid"), "-r", path("vrrp.pid"))
}

// forget removes the files that keepalived and its scripts leave behind if they are killed.
func (h *vipHost) forget() {
	for _, name := range []string{"master", "pid", "k.pid", "vrrp.pid"} {
		_ = os.Remove(filepath.Join(h.dir, h.name+"-"+name))
	}
}

// keepalivedSettled waits until one host has had the addresses for a second and answers there, and
// the other runs keepalived and has neither address. It reports whether that happened in time.
func (s *vipSite) keepalivedSettled(limit time.Duration) (active, passive *vipHost, ok bool) {
	since := time.Now()
	for begun := since; time.Since(begun) < limit; time.Sleep(10 * time.Millisecond) {
		var now *vipHost
		for _, pair := range [][2]*vipHost{{s.a, s.b}, {s.b, s.a}} {
			x, y := pair[0], pair[1]
			if x.has(vip4) && x.has(vip6) && !y.has(vip4) && !y.has(vip6) && len(x.processes("vip-controller")) == 1 &&
				len(y.processes("vip-controller")) == 0 && len(y.processes("keepalived -n")) > 1 {
				now, passive = x, y
			}
		}
		if now != active || now == nil {
			active, since = now, time.Now()
		}
		if active != nil && time.Since(since) > time.Second {
			return active, passive, true
		}
	}
	return nil, nil, false
}

// TestVirtualIPBesideKeepalived measures both in one run: the same hosts, client and faults. It
// prints the tables of docs/measured.md.
func TestVirtualIPBesideKeepalived(t *testing.T) {
	if !*full && *times == 0 {
		t.Skip("with -full")
	}
	if _, err := exec.LookPath("keepalived"); err != nil {
		t.Skip("keepalived is not installed: run scripts/install-deps")
	}
	s := newVIPSite(t)
	for _, h := range []*vipHost{s.a, s.b} {
		h.sidecar("fast")
	}
	s.settled()
	tanist := map[string]vipOutcome{}
	for _, f := range vipFaults() {
		tanist[f.name] = s.withinBounds(f, vipTimes())
	}
	for _, h := range []*vipHost{s.a, s.b} {
		h.end()
		h.reset()
	}
	s.a.keepalived(100)
	s.b.keepalived(99)
	s.keepalivedSettledOrRestarted()
	keepalived := map[string]vipOutcome{}
	for _, f := range keepalivedFaults() {
		times := vipTimes()
		if f.name == vipFrozen {
			times = min(times, 3) // each leaves two masters, and so costs a restart
		}
		keepalived[f.name] = s.play(f, times, s.keepalivedSettledOrRestarted)
		t.Logf("keepalived, adverts every 0.1 s, %s: %v", f.name, keepalived[f.name])
	}
	for _, ip := range bothIPs {
		t.Logf("%s:\n%s", ip, vipTable(ip, tanist, keepalived))
	}
}

// keepalivedSettledOrRestarted waits until keepalived has settled, and restarts it if it does not:
// after a freeze it may stay master on both hosts, and the other faults are measured too.
func (s *vipSite) keepalivedSettledOrRestarted() (active, passive *vipHost) {
	s.t.Helper()
	if a, b, ok := s.keepalivedSettled(10 * time.Second); ok {
		return a, b
	}
	s.t.Log("keepalived did not settle within 10 s: restarting it")
	for _, h := range []*vipHost{s.a, s.b} {
		h.end()
		h.reset()
		h.forget()
		h.boot(h.argv...)
	}
	a, b, ok := s.keepalivedSettled(time.Minute)
	if !ok {
		s.t.Fatal("keepalived does not settle")
	}
	return a, b
}

// keepalivedFaults are the faults of vipFaults that keepalived knows, under the same names.
// keepalived has no second process that stops the controller, so a freeze is one of all its
// processes.
func keepalivedFaults() []vipFault {
	const daemon, controller = "keepalived -n", "vip-controller"
	again := func(h *vipHost) { h.boot(h.argv...) }
	return []vipFault{
		{"kill", func(h *vipHost) { h.signal(unix.SIGKILL, controller) }, nil, 0},
		{"hang", func(h *vipHost) { h.signal(unix.SIGSTOP, controller) }, nil, 0},
		{"cut", (*vipHost).unplug, (*vipHost).plug, 0},
		{"crash", func(h *vipHost) { h.unplug(); h.end() }, func(h *vipHost) {
			h.reset()
			h.plug()
			h.forget()
			again(h)
		}, 0},
		{"planned move", func(h *vipHost) { _ = unix.Kill(slices.Min(h.processes(daemon)), unix.SIGTERM) }, func(h *vipHost) {
			h.await(10*time.Second, "keepalived has ended", func() bool { return len(h.processes(daemon)) == 0 })
			again(h)
		}, 0},
		// The last one: neighbors may continue to use the host that lost.
		{
			vipFrozen, func(h *vipHost) { h.signal(unix.SIGSTOP, daemon) },
			func(h *vipHost) { h.signal(unix.SIGCONT, daemon, controller) }, 0,
		},
	}
}

// vipTable returns the outcomes at one address as a table. The ratio is that of the medians: below
// 1, Tanist is faster.
func vipTable(ip string, tanist, keepalived map[string]vipOutcome) string {
	var b strings.Builder
	b.WriteString("| Fault | Tanist, median (worst) of n | keepalived, median (worst) of n | Ratio | Probes that two hosts of keepalived answered | keepalived: outage after the fault's end |\n|---|---|---|---|---|---|\n")
	ms := func(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
	cell := func(o vipOutcome) string {
		return fmt.Sprintf("%s (%s) of %d", ms(o.median(ip)), ms(o.worst(ip)), len(o.outages[ip]))
	}
	for _, f := range vipFaults() {
		o := tanist[f.name]
		fmt.Fprintf(&b, "| %s | %s |", f.name, cell(o))
		if k, ok := keepalived[f.name]; ok {
			fmt.Fprintf(&b, " %s | %.2f | %d, over %s | %s |\n", cell(k), float64(o.median(ip))/float64(k.median(ip)), k.twice[ip], ms(k.over[ip]), ms(k.healed[ip]))
		} else {
			b.WriteString(" | | | |\n")
		}
	}
	return b.String()
}
