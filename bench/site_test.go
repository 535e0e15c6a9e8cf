package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
)

// long reports whether the long form was requested.
func long() bool { return os.Getenv("TANIST_LONG") != "" }

// times returns the number of repetitions.
func times(inShort, inLong int) int {
	if long() {
		return inLong
	}
	return inShort
}

// site is a store of three members and some hosts.
type site struct {
	t       *testing.T
	dir     string
	binary  string // tanist
	members *etcdtest.Cluster
	outside []string // the endpoints as the hosts reach them
	where   string   // the store in a configuration file; empty: etcd
	hosts   []*host
	extra   string // YAML for every controller
	client  http.Client
}

// host is one side: a network namespace, and in it a PID namespace whose first process is the
// sidecar.
type host struct {
	*site
	name   string
	n      int    // part of its addresses and ports
	own    string // YAML for this host only
	config string
	record string
	argv   []string // the host's only service
	cmd    *exec.Cmd
	log    *os.File
}

const cluster = "bench"

// newSite starts the store and makes the hosts' namespaces.
func newSite(t *testing.T, hosts int, extra string) *site {
	t.Helper()
	s := newHosts(t, hosts, extra)
	s.members = etcdtest.Start(t, 3)
	for i := range s.members.Len() {
		if hosts == 0 {
			break // not needed from outside
		}
		s.outside = append(s.outside, "http://"+s.forward(s.members.Addr(i)))
	}
	return s
}

// newHosts makes the hosts' namespaces, without a store.
func newHosts(t *testing.T, hosts int, extra string) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	s := &site{
		t: t, dir: testbed.Dir(t), binary: testbed.Binary(t, "tanist"), extra: extra,
		client: http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}},
	}
	for n := range hosts {
		s.hosts = append(s.hosts, s.newHost(n+1))
	}
	s.run("nft", "add", "table", "inet", s.table())
	t.Cleanup(func() { s.try("nft", "delete", "table", "inet", s.table()) })
	s.run("nft", "add", "chain", "inet", s.table(), "in", "{ type filter hook input priority -200; }")
	s.run("nft", "add", "chain", "inet", s.table(), "out", "{ type filter hook output priority -200; }")
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, h := range s.hosts {
			b, _ := os.ReadFile(filepath.Join(s.dir, h.name+".log"))
			lines := strings.Split(string(b), "\n")
			t.Logf("%s:\n%s", h.name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	})
	return s
}

func (s *site) table() string { return fmt.Sprintf("tanist_%d", os.Getpid()) }

func (s *site) run(argv ...string) {
	s.t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

func (s *site) try(argv ...string) { _ = exec.Command(argv[0], argv[1:]...).Run() }

// forward makes a service of this machine reachable from the namespaces, and returns its address.
func (s *site) forward(to string) string {
	s.t.Helper()
	l, err := net.Listen("tcp", gateway()+":0")
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var pumps sync.WaitGroup
	s.t.Cleanup(func() { cancel(); _ = l.Close(); pumps.Wait() })
	pumps.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			pumps.Go(func() {
				defer in.Close()
				dialer := net.Dialer{Timeout: patience}
				out, err := dialer.DialContext(ctx, "tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				defer context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })()
				done := make(chan struct{}, 2)
				copyTo := func(dst, src net.Conn) { _, _ = io.Copy(dst, src); done <- struct{}{} }
				go copyTo(out, in)
				go copyTo(in, out)
				<-done
				_, _ = in.Close(), out.Close()
				<-done
			})
		}
	})
	return l.Addr().String()
}

// subnet is different in every run, because several may run on one machine.
func subnet(n int) string { return fmt.Sprintf("10.%d.%d", 100+os.Getpid()%100, n) }

// gateway is an address of this machine that every namespace can reach: this end of the first
// host's link.
func gateway() string { return subnet(1) + ".1" }

func (s *site) newHost(n int) *host {
	s.t.Helper()
	h := &host{site: s, name: "ctl-" + string(rune('a'+n-1)), n: n}
	h.record = filepath.Join(s.dir, h.name+".record")
	h.config = filepath.Join(s.dir, h.name+".yml")
	space, here := h.space(), h.link()
	s.try("ip", "netns", "del", space)
	s.run("ip", "netns", "add", space)
	s.t.Cleanup(func() { s.try("ip", "netns", "del", space); s.try("ip", "link", "del", here) })
	s.try("ip", "link", "del", here)
	s.run("ip", "link", "add", here, "type", "veth", "peer", "name", "eth0", "netns", space)
	s.run("ip", "addr", "add", subnet(n)+".1/24", "dev", here)
	s.run("ip", "link", "set", here, "up")
	in := []string{"ip", "-n", space}
	s.run(append(in, "addr", "add", h.address()+"/24", "dev", "eth0")...)
	s.run(append(in, "link", "set", "lo", "up")...)
	s.run(append(in, "link", "set", "eth0", "up")...)
	s.run(append(in, "route", "add", "default", "via", subnet(n)+".1")...)
	return h
}

func (h *host) space() string   { return fmt.Sprintf("tanist-bench-%d-%d", os.Getpid(), h.n) }
func (h *host) link() string    { return fmt.Sprintf("tb%d-%d", os.Getpid(), h.n) }
func (h *host) address() string { return subnet(h.n) + ".2" }
func (h *host) url() string     { return "http://" + h.address() + ":8080" }

// start starts the host: one process, and when it dies, all others on the host die with it.
func (h *host) start(extra ...string) {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	api := h.forward(h.address() + ":8710")
	text := fmt.Sprintf(`kind: controller
cluster: %s
name: %s
%s
run:
  command: [%s, controller, "%s:8080", %s]
  url: %s
  stop_timeout: 5s
health: {checks: [{name: port, tcp: "%s:8080"}]}
yield_wait: 5s
listen: {http: "%s:8710", open: all, advertise: "http://%s"}
state_dir: %s
%s
%s
`, cluster, h.name, h.store(), self, h.address(), h.record, h.url(), h.address(), h.address(), api,
		filepath.Join(h.dir, "state"), h.extra, strings.Join(append(extra, h.own), "\n"))
	if err := os.WriteFile(h.config, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	h.boot(h.binary, "sidecar", "-c", h.config)
}

// store selects the store.
func (s *site) store() string {
	if s.where != "" {
		return s.where
	}
	return "store: etcd\netcd: {endpoints: [\"" + strings.Join(s.outside, `", "`) + "\"]}"
}

// boot starts the host with a command as its only service.
func (h *host) boot(argv ...string) {
	h.t.Helper()
	h.argv = argv
	h.restart()
	h.t.Cleanup(h.crash)
}

// restart starts the host again with the same command.
func (h *host) restart() {
	h.t.Helper()
	var err error
	if h.log, err = os.OpenFile(filepath.Join(h.dir, h.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		h.t.Fatal(err)
	}
	h.cmd = exec.Command("ip", append([]string{"netns", "exec", h.space(), "unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"}, h.argv...)...)
	h.cmd.Stdout, h.cmd.Stderr = h.log, h.log
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
}

// crash kills every process of the host at once. If its link was cut before, no packet leaves it.
func (h *host) crash() {
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Kill() // unshare; the first process of the PID namespace dies with it, and so do all others
	_ = h.cmd.Wait()
	_ = h.log.Close()
	h.cmd = nil
}

// cut drops every packet of the host, silently and in both directions.
func (h *host) cut() {
	h.t.Helper()
	h.run("nft", "add", "rule", "inet", h.table(), "in", "iifname", h.link(), "drop")
	h.run("nft", "add", "rule", "inet", h.table(), "out", "oifname", h.link(), "drop")
}

// heal ends every cut.
func (s *site) heal() {
	s.t.Helper()
	s.run("nft", "flush", "table", "inet", s.table())
}

// state asks the host's sidecar.
func (h *host) state() election.State { return h.stateAt(h.address() + ":8710") }

func (h *host) stateAt(api string) election.State {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+api+"/v1/status", nil)
	if err != nil {
		return ""
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var status struct {
		State election.State `json:"state"`
	}
	if json.NewDecoder(resp.Body).Decode(&status) != nil {
		return ""
	}
	return status.State
}

// patience bounds every wait for something that must happen. It is not a claim: test machines are
// busy.
const patience = 2 * time.Minute

// await waits until holds reports true.
func (s *site) await(what string, holds func() bool) {
	s.t.Helper()
	end := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(end) {
			var states []string
			for _, h := range s.hosts {
				states = append(states, h.name+": "+string(h.state()))
			}
			s.t.Fatalf("timed out after %v: %s (%s)", patience, what, strings.Join(states, ", "))
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// serves reports whether, by its own record, the host's controller served a moment ago, and since
// when.
func (h *host) serves() (bool, election.Instant) {
	lives := readLives(h.t, h.record)
	if len(lives) == 0 {
		return false, 0
	}
	last := lives[len(lives)-1]
	return election.BootClock().Sub(last.to) < 50*time.Millisecond, last.from
}

// begin starts ctl-a, which becomes active, then the others.
func (s *site) begin(extra ...string) {
	s.t.Helper()
	for i, h := range s.hosts {
		h.start(extra...)
		want := election.StateReady
		if i == 0 {
			want = election.StateServing
		}
		s.await(h.name+" is "+string(want), func() bool { return h.state() == want })
	}
}

// roles returns which host serves and which is ready.
func (s *site) roles() (active, passive *host) {
	s.t.Helper()
	s.await("one serves and all others are ready", func() bool {
		active, passive = nil, nil
		for _, h := range s.hosts {
			switch h.state() {
			case election.StateServing:
				active = h
			case election.StateReady:
				passive = h
			default:
				return false
			}
		}
		return active != nil && (passive != nil || len(s.hosts) == 1)
	})
	return active, passive
}

// noOverlap fails the test if the controllers' own records overlap.
func (s *site) noOverlap() {
	s.t.Helper()
	for i, a := range s.hosts {
		for _, b := range s.hosts[i+1:] {
			if d := overlap(readLives(s.t, a.record), readLives(s.t, b.record)); d > 0 {
				s.t.Errorf("%s and %s served at once for %v", a.name, b.name, d)
			}
		}
	}
}

// stats prints and returns the median and the maximum.
func stats(t *testing.T, what string, all []time.Duration) (median, most time.Duration) {
	t.Helper()
	if len(all) == 0 {
		t.Fatalf("%s: nothing was measured", what)
	}
	slices.Sort(all)
	median, most = all[len(all)/2], all[len(all)-1]
	round := func(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
	t.Logf("%s: median %v, max %v, min %v, n=%d", what, round(median), round(most), round(all[0]), len(all))
	return median, most
}

// load requests a URL every 10 ms and counts the failures.
type load struct {
	stop   context.CancelFunc
	done   chan struct{}
	asked  int
	failed int
	why    string // the first failure
	mu     sync.Mutex
}

func (s *site) load(url string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stop: cancel, done: make(chan struct{})}
	// The timeout is long, for busy machines: what counts is whether users are served, not how
	// fast.
	client := http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 200}}
	go func() {
		defer close(l.done)
		defer client.CloseIdleConnections()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var asking sync.WaitGroup
		defer asking.Wait()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			asking.Go(func() {
				resp, err := client.Get(url)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				l.mu.Lock()
				defer l.mu.Unlock()
				l.asked++
				if err == nil && resp.StatusCode != http.StatusOK {
					err = errors.New(resp.Status)
				}
				if err != nil {
					if l.failed++; l.why == "" {
						l.why = fmt.Sprintf("request %d: %v", l.asked, err)
						s.t.Log(l.why)
					}
				}
			})
		}
	}()
	return l
}

// count returns how many requests have ended, successfully or not.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

// end stops the load and returns its counts.
func (l *load) end() (asked, failed int) {
	l.stop()
	<-l.done
	return l.asked, l.failed
}
