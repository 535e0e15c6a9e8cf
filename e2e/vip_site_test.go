package e2e

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/internal/testbed"
)

const (
	vip4 = "10.66.0.100"
	vip6 = "fd66::100"
)

// vipPatience is how long a test waits for what happens within seconds unless the machine is busy.
const vipPatience = 2 * time.Minute

// vipSite is two hosts and a client on one Ethernet: network namespaces connected by a bridge. etcd
// runs outside and is reached through the bridge.
type vipSite struct {
	t      *testing.T
	dir    string
	tag    string
	self   string // this binary
	etcd   *etcdtest.Cluster
	store  string            // its URL on the site
	tokens map[string]string // if the store is Consul: by the kind of process
	a, b   *vipHost
	client *vipHost
	judge  *vipHost
}

// vipHost is a host of the site.
type vipHost struct {
	*vipSite
	name  string
	space string
	port  string // the host's end of the link, at the bridge
	mac   string
	argv  []string // the command line of its supervisor
}

func newVIPSite(t *testing.T) *vipSite {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &vipSite{t: t, dir: testbed.Dir(t), tag: strings.ToLower(rand.Text()[:6]), self: self, etcd: etcdtest.Start(t, 1)}
	// The bridge and the path to etcd have a namespace of their own, so that two runs on one
	// machine do not meet.
	lan := "lan-" + s.tag
	s.run("ip", "netns", "add", lan)
	t.Cleanup(func() { s.try("ip", "netns", "del", lan) })
	s.run("ip", "-n", lan, "link", "add", "br0", "type", "bridge")
	s.run("ip", "-n", lan, "addr", "add", "10.66.0.254/24", "dev", "br0")
	s.run("ip", "-n", lan, "link", "set", "br0", "up")
	s.run("ip", "-n", lan, "link", "set", "lo", "up")
	s.store = "http://" + s.forward(lan, "10.66.0.254:0", s.etcd.Addr(0))
	s.a, s.b, s.client = s.host(lan, "a", 1), s.host(lan, "b", 2), s.host(lan, "c", 9)
	s.judge = s.host(lan, "j", 8)
	t.Cleanup(func() {
		for _, h := range []*vipHost{s.a, s.b} {
			if t.Failed() {
				b, _ := os.ReadFile(filepath.Join(s.dir, h.name+".log"))
				lines := strings.Split(string(b), "\n")
				t.Logf("%s:\n%s", h.name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
			}
		}
	})
	return s
}

func (s *vipSite) host(lan, name string, n int) *vipHost {
	s.t.Helper()
	h := &vipHost{vipSite: s, name: "ctl-" + name, space: name + "-" + s.tag, port: name + "0"}
	s.run("ip", "netns", "add", h.space)
	s.t.Cleanup(func() { s.try("ip", "netns", "del", h.space) })
	s.t.Cleanup(h.end)
	s.run("ip", "-n", lan, "netns", "set", h.space, strconv.Itoa(n)) // for the kernels' record
	s.run("ip", "-n", h.space, "link", "add", "eth0", "type", "veth", "peer", "name", h.port, "netns", lan)
	s.run("ip", "netns", "exec", h.space, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
	s.run("ip", "-n", h.space, "addr", "add", fmt.Sprintf("10.66.0.%d/24", n), "dev", "eth0")
	s.run("ip", "-n", h.space, "addr", "add", fmt.Sprintf("fd66::%d/64", n), "dev", "eth0", "nodad")
	s.run("ip", "-n", h.space, "link", "set", "lo", "up")
	s.run("ip", "-n", h.space, "link", "set", "eth0", "up")
	s.run("ip", "-n", lan, "link", "set", h.port, "master", "br0", "up")
	out := s.run("ip", "-n", h.space, "-o", "link", "show", "eth0")
	_, rest, _ := strings.Cut(out, "link/ether ")
	h.mac, _, _ = strings.Cut(rest, " ")
	return h
}

func (h *vipHost) lan() string { return "lan-" + h.tag }

func (s *vipSite) run(argv ...string) string {
	s.t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

func (s *vipSite) try(argv ...string) { _ = exec.Command(argv[0], argv[1:]...).Run() }

// forward makes a service of this machine reachable in a namespace: a helper there forwards
// connections through a Unix socket, which belongs to no namespace.
func (s *vipSite) forward(space, listen, to string) string {
	s.t.Helper()
	dir, err := os.MkdirTemp("", "vip")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "store.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	go vipPass(l, "tcp", to)
	helper := exec.Command("ip", "netns", "exec", space, s.self, "vip-forward", listen, path)
	helper.Stderr = os.Stderr
	out, err := helper.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := helper.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = helper.Process.Kill(); _ = helper.Wait() })
	var address string
	if _, err := fmt.Fscanln(out, &address); err != nil {
		s.t.Fatal(err)
	}
	return address
}

// boot starts a host's supervisor.
func (h *vipHost) boot(argv ...string) {
	h.t.Helper()
	h.argv = argv
	h.start(argv...)
}

func (h *vipHost) start(argv ...string) {
	h.t.Helper()
	log, err := os.OpenFile(filepath.Join(h.dir, h.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("ip", append([]string{"netns", "exec", h.space}, argv...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "TANIST_NAME="+h.name)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL} // a killed test leaves nothing behind
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
}

// processes returns the host's processes whose command line contains word, or all.
func (h *vipHost) processes(word string) []int {
	var all []int
	out, _ := exec.Command("ip", "netns", "pids", h.space).Output()
	for f := range strings.FieldsSeq(string(out)) {
		pid, _ := strconv.Atoi(f)
		line, err := os.ReadFile("/proc/" + f + "/cmdline")
		if err == nil && strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), word) {
			all = append(all, pid)
		}
	}
	return all
}

// signal sends a signal to all processes whose command line contains one of the words. After SIGSTOP
// it returns once all have stopped.
func (h *vipHost) signal(sig unix.Signal, words ...string) {
	h.t.Helper()
	var pids []int
	for _, word := range words {
		pids = append(pids, h.processes(word)...)
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, sig)
	}
	if sig != unix.SIGSTOP {
		return
	}
	for _, pid := range pids {
		if err := testbed.Freeze(pid); err != nil && !errors.Is(err, unix.ESRCH) {
			h.t.Fatal(err)
		}
	}
}

// end kills everything on the host and clears its kernel state, as a crash does.
func (h *vipHost) end() {
	for range 100 {
		if len(h.processes("")) == 0 {
			break
		}
		h.signal(unix.SIGKILL, "")
		time.Sleep(5 * time.Millisecond)
	}
}

// state is the host's state_dir. Like /run, it is empty after a reboot.
func (h *vipHost) state() string { return filepath.Join(h.dir, h.name+"-state") }

// reset removes what does not survive a reboot.
func (h *vipHost) reset() {
	_ = os.RemoveAll(h.state())
	for _, ip := range []string{vip4 + "/24", vip4 + "/32", vip6 + "/64", vip6 + "/128"} {
		h.try("ip", "-n", h.space, "addr", "del", ip, "dev", "eth0")
	}
}

// unplug removes the host's port from the bridge. The host's own link stays up.
func (h *vipHost) unplug() { h.run("ip", "-n", h.lan(), "link", "set", h.port, "nomaster") }
func (h *vipHost) plug()   { h.run("ip", "-n", h.lan(), "link", "set", h.port, "master", "br0") }

func (h *vipHost) has(ip string) bool {
	out, _ := exec.Command("ip", "-n", h.space, "-o", "addr", "show", "dev", "eth0").Output()
	return strings.Contains(string(out), " "+ip+"/")
}

func (s *vipSite) await(limit time.Duration, what string, holds func() bool) time.Duration {
	s.t.Helper()
	begun := time.Now()
	for !holds() {
		if time.Since(begun) > limit {
			s.t.Fatalf("timed out after %v: %s", limit, what)
		}
		time.Sleep(3 * time.Millisecond)
	}
	return time.Since(begun)
}

// waits reports whether a condition holds within a time.
func (s *vipSite) waits(limit time.Duration, holds func() bool) bool {
	for begun := time.Now(); !holds(); time.Sleep(3 * time.Millisecond) {
		if time.Since(begun) > limit {
			return false
		}
	}
	return true
}

func (h *vipHost) file() string { return filepath.Join(h.dir, h.name+".yml") }

// vipAddresses is the part of a configuration file that names the addresses.
const vipAddresses = "virtual_ip:\n  - {address: " + vip4 + "/24, interface: eth0}\n  - {address: \"" + vip6 + "/64\", interface: eth0}\n"

func (h *vipHost) number() int { return map[string]int{"ctl-a": 1, "ctl-b": 2}[h.name] }

// sidecar writes the configuration of a host's sidecar, which holds the addresses, and starts it.
func (h *vipHost) sidecar(profile string) { h.sidecarWith(profile, vipAddresses) }

func (h *vipHost) sidecarWith(profile, more string) {
	h.t.Helper()
	file, n := h.file(), h.number()
	text := fmt.Sprintf(`kind: controller
cluster: vip
name: %s
%s
lease: {profile: %s}
run:
  command: [%s, vip-controller]
  url: http://10.66.0.%d:8080
  stop_timeout: 500ms
health:
  interval: 100ms
  timeout: %s
  checks: [{name: http, http: "http://10.66.0.%d:8080/"}]
yield_wait: 5s
listen: {http: "10.66.0.%d:8710", open: answers}
state_dir: %s
%s`, h.name, h.in("controller"), profile, h.self, n, healthTimeout(), n, n, h.state(), more)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	h.boot(program(h.t, "tanist"), "sidecar", "-c", file)
}

// healthTimeout is the time-out of the health check. The full form measures outages; in the short form
// a busy machine is not to be taken for a controller that hangs.
func healthTimeout() string {
	if *full || *times > 0 {
		return "100ms"
	}
	return "1s"
}

// follower starts a host's tanist vip.
func (h *vipHost) follower() {
	h.t.Helper()
	h.start(h.followerCommand()...)
}

// followerCommand writes the configuration of a host's tanist vip and returns the command that
// starts it as its unit does: without root, with the two capabilities that the keeper needs.
func (h *vipHost) followerCommand() []string {
	h.t.Helper()
	const nobody = 65534
	state, file := filepath.Join(h.dir, h.name+"-vip"), filepath.Join(h.dir, h.name+"-vip.yml")
	text := fmt.Sprintf("kind: vip\ncluster: vip\nname: vip-%d\ncontroller: %s\n%s\nstate_dir: %s\n%s",
		h.number(), h.name, h.in("vip"), state, vipAddresses)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	if err := os.MkdirAll(state, 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Chown(state, nobody, nobody); err != nil {
		h.t.Fatal(err)
	}
	const caps = "-all,+net_admin,+net_raw"
	return []string{
		"setpriv", fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), "--clear-groups", "--bounding-set=" + caps,
		"--inh-caps=" + caps, "--ambient-caps=" + caps, "--no-new-privs", "--", program(h.t, "tanist"), "vip", "-c", file,
	}
}

// in returns the part of a configuration file that names the store, for a kind of process.
func (s *vipSite) in(kind string) string {
	s.t.Helper()
	if s.tokens == nil {
		return fmt.Sprintf("etcd: {endpoints: [%q]}", s.store)
	}
	where := fmt.Sprintf("store: consul\nconsul: {address: %q", s.store)
	token := s.tokens[kind]
	if token == "" {
		return where + "}"
	}
	file := filepath.Join(s.dir, kind+".token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o644); err != nil { // tanist vip is not root
		s.t.Fatal(err)
	}
	return where + fmt.Sprintf(", token_file: %q}", file)
}

// cli returns the flags of the CLI that name the cluster.
func (s *vipSite) cli() []string {
	if s.tokens == nil {
		return []string{"-C", "vip", "--endpoints", s.store}
	}
	return []string{"-c", s.a.file()}
}

// tanist runs a command of the CLI on a host.
func (h *vipHost) tanist(args ...string) string {
	h.t.Helper()
	out, _ := exec.Command("ip", append([]string{"netns", "exec", h.space, program(h.t, "tanist")}, args...)...).CombinedOutput()
	return string(out)
}

// role returns the state of a host's sidecar.
func (s *vipSite) role(h *vipHost) string {
	out := s.client.tanist("list", "-C", "vip", "--endpoints", s.store, "-o", "json")
	var doc struct {
		Active *struct{ Controller, State string } `json:"active"`
		All    []struct{ Name, State string }      `json:"controllers"`
	}
	if json.Unmarshal([]byte(out), &doc) != nil {
		return ""
	}
	if doc.Active != nil && doc.Active.Controller == h.name {
		return doc.Active.State
	}
	for _, c := range doc.All {
		if c.Name == h.name {
			return c.State
		}
	}
	return ""
}

// settled waits until one host serves and the other is ready, and returns them.
func (s *vipSite) settled() (active, passive *vipHost) {
	s.t.Helper()
	s.await(vipPatience, "one host serves and the other is ready", func() bool {
		switch a, b := s.role(s.a), s.role(s.b); {
		case a == "serving" && b == "ready":
			active, passive = s.a, s.b
		case a == "ready" && b == "serving":
			active, passive = s.b, s.a
		}
		return active != nil && active.has(vip4) && active.has(vip6) && !passive.has(vip4) && !passive.has(vip6)
	})
	return active, passive
}

// vipWatch is what client and judge observed.
type vipWatch struct {
	s    *vipSite
	ends []func()
	mu   sync.Mutex
	all  []vipSeen
}

// watch starts client and judge.
func (s *vipSite) watch(ips ...string) *vipWatch {
	s.t.Helper()
	w := &vipWatch{s: s}
	w.start(s.client, "vip-client", ips)
	w.start(s.judge, "vip-judge", ips)
	s.t.Cleanup(w.end)
	return w
}

func (w *vipWatch) start(h *vipHost, what string, ips []string) {
	w.s.t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", h.space, h.self, what}, ips...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		w.s.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var seen vipSeen
			if json.Unmarshal(lines.Bytes(), &seen) == nil {
				w.mu.Lock()
				w.all = append(w.all, seen)
				w.mu.Unlock()
			}
		}
	}()
	w.ends = append(w.ends, func() {
		_ = in.Close()
		<-done
		_ = cmd.Wait()
	})
}

// end stops the observation. It may be called more than once.
func (w *vipWatch) end() {
	for _, end := range w.ends {
		end()
	}
	w.ends = nil
}

// seen returns the observations of a kind and an address, in order of time.
func (w *vipWatch) seen(kind, ip string) []vipSeen {
	w.mu.Lock()
	defer w.mu.Unlock()
	var some []vipSeen
	for _, s := range w.all {
		if s.Kind == kind && s.IP == ip {
			some = append(some, s)
		}
	}
	slices.SortStableFunc(some, func(a, b vipSeen) int { return int(a.At - b.At) })
	return some
}

// gap returns the longest time without a success that ended after since, and not after until.
func (w *vipWatch) gap(kind, ip string, since, until int64) time.Duration {
	last, most := int64(0), int64(0)
	for _, s := range w.seen(kind, ip) {
		if last != 0 && s.At > since && s.At <= until {
			most = max(most, s.At-last)
		}
		last = s.At
	}
	return time.Duration(most)
}

// from reports whether who has answered by HTTP since.
func (w *vipWatch) from(ip, who string, since int64) bool {
	return slices.ContainsFunc(w.seen("http", ip), func(s vipSeen) bool { return s.Who == who && s.At > since })
}

// both returns how many probes two hosts answered, and the time between the first and the last of
// them.
func (w *vipWatch) both(ip string) (times int, span time.Duration) {
	who := map[int64]map[string]int64{}
	for _, s := range w.seen("answer", ip) {
		if who[s.N] == nil {
			who[s.N] = map[string]int64{}
		}
		who[s.N][s.Who] = s.At
	}
	first, last := int64(0), int64(0)
	for _, macs := range who {
		if len(macs) > 1 {
			times++
			for _, at := range macs {
				if first == 0 || at < first {
					first = at
				}
				last = max(last, at)
			}
		}
	}
	return times, time.Duration(last - first)
}

// lastAnswer returns when a host last answered for ip.
func (w *vipWatch) lastAnswer(ip, mac string) int64 {
	last := int64(0)
	for _, s := range w.seen("answer", ip) {
		if s.Who == mac {
			last = s.At
		}
	}
	return last
}
