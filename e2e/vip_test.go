package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/internal/testbed"
)

var bothIPs = []string{vip4, vip6}

// vipFault is something that happens to the host that has the address.
type vipFault struct {
	name string
	do   func(h *vipHost)
	undo func(h *vipHost)
	// most is the longest outage in profile fast. A busy machine gets three times as much.
	most time.Duration
}

// vipFrozen is the name of a fault that both Tanist and keepalived know.
const vipFrozen = "freeze of sidecar and guard"

func vipFaults() []vipFault {
	const sidecar, guard, keeper, controller = "tanist sidecar", "tanist guard", "vip-keeper", "vip-controller"
	thaw := func(h *vipHost) { h.signal(unix.SIGCONT, sidecar, guard, keeper, controller) }
	return []vipFault{
		{"kill", func(h *vipHost) { h.signal(unix.SIGKILL, controller) }, nil, 500 * time.Millisecond},
		{"hang", func(h *vipHost) { h.signal(unix.SIGSTOP, controller) }, thaw, 1500 * time.Millisecond},
		{"freeze of the sidecar", func(h *vipHost) { h.signal(unix.SIGSTOP, sidecar) }, thaw, 1500 * time.Millisecond},
		{vipFrozen, func(h *vipHost) { h.signal(unix.SIGSTOP, sidecar, guard) }, thaw, 1500 * time.Millisecond},
		{"cut", (*vipHost).unplug, (*vipHost).plug, 1500 * time.Millisecond},
		{
			"crash", func(h *vipHost) { h.unplug(); h.end() },
			func(h *vipHost) { h.reset(); h.plug(); h.boot(h.argv...) }, 1500 * time.Millisecond,
		},
		{"guard killed", func(h *vipHost) { h.signal(unix.SIGKILL, guard) }, nil, 500 * time.Millisecond},
		{"planned move", func(h *vipHost) { h.client.tanist("switchover", "-y", "-C", "vip", "--endpoints", h.store) }, nil, 300 * time.Millisecond},
	}
}

// vipOutcome is what a client and the judge saw in some runs of a fault.
type vipOutcome struct {
	outages map[string][]time.Duration // by address, or "ping " and the address
	healed  map[string]time.Duration   // longest outage after the fault had ended
	twice   map[string]int             // number of probes that two hosts answered
	over    map[string]time.Duration   // longest time over which two hosts answered
}

// play inflicts a fault on the active a number of times.
func (s *vipSite) play(f vipFault, times int, settled func() (active, passive *vipHost)) vipOutcome {
	s.t.Helper()
	o := vipOutcome{map[string][]time.Duration{}, map[string]time.Duration{}, map[string]int{}, map[string]time.Duration{}}
	for range times {
		active, passive := settled()
		w := s.watch(bothIPs...)
		answers := func(h *vipHost, since int64) func() bool {
			return func() bool { return w.from(vip4, h.name, since) && w.from(vip6, h.name, since) }
		}
		s.await(vipPatience, "the client gets answers", func() bool { return answers(active, 0)() && len(w.seen("answer", vip4)) > 2 })
		at := now()
		f.do(active)
		// On a busy machine the other host's start may fail, and the first host resumes.
		moved := s.waits(12*time.Second, answers(passive, at))
		time.Sleep(300 * time.Millisecond) // the judge needs some time after the move, too
		healed := now()
		if f.undo != nil {
			f.undo(active)
		}
		// After keepalived was master on both hosts, the client may use the one that lost until its
		// neighbor entry expires.
		active, _ = settled()
		mended := now()
		s.await(vipPatience, "the client gets answers again", func() bool { return answers(s.a, mended)() || answers(s.b, mended)() })
		if !moved {
			s.t.Logf("%s: %s did not take over within 12 s, or the client did not find it; %s is active", f.name, passive.name, active.name)
			healed = now() // so the outage may end later
		}
		for _, ip := range bothIPs {
			o.outages[ip] = append(o.outages[ip], w.gap("http", ip, at, healed))
			o.outages["ping "+ip] = append(o.outages["ping "+ip], w.gap("ping", ip, at, healed))
			o.healed[ip] = max(o.healed[ip], w.gap("http", ip, healed, now()))
			n, span := w.both(ip)
			o.twice[ip] += n
			o.over[ip] = max(o.over[ip], span)
		}
		w.end()
	}
	for _, all := range o.outages {
		slices.Sort(all)
	}
	return o
}

func (o vipOutcome) median(of string) time.Duration { return o.outages[of][len(o.outages[of])/2] }
func (o vipOutcome) worst(of string) time.Duration  { return o.outages[of][len(o.outages[of])-1] }

func (o vipOutcome) String() string {
	var all []string
	ms := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
	for _, ip := range bothIPs {
		all = append(all, fmt.Sprintf("%s: HTTP %v (at most %v), ping %v; after the fault's end at most %v; answered by two hosts: %d probes, over %v",
			ip, ms(o.median(ip)), ms(o.worst(ip)), ms(o.median("ping "+ip)), ms(o.healed[ip]), o.twice[ip], ms(o.over[ip])))
	}
	return fmt.Sprintf("n=%d, median outage at %s", len(o.outages[vip4]), strings.Join(all, " | "))
}

// vipTimes returns how often each fault is inflicted.
func vipTimes() int {
	switch {
	case *times > 0:
		return *times
	case *full:
		return 10
	}
	return 1
}

// TestVirtualIPFollowsTheActiveAndIsNeverOnTwoHosts: after every fault the address leads to the
// other host, also by the client's own neighbor table, and no probe is answered by two hosts.
func TestVirtualIPFollowsTheActiveAndIsNeverOnTwoHosts(t *testing.T) {
	s := newVIPSite(t)
	for _, h := range []*vipHost{s.a, s.b} {
		h.sidecar("fast")
	}
	s.settled()
	for _, f := range vipFaults() {
		t.Run(f.name, func(t *testing.T) {
			s.t = t
			s.withinBounds(f, 1) // often: TestVirtualIPBesideKeepalived
		})
	}
	s.t = t
}

// withinBounds inflicts a fault on Tanist and checks what must hold in every one.
func (s *vipSite) withinBounds(f vipFault, times int) vipOutcome {
	s.t.Helper()
	o := s.play(f, times, s.settled)
	s.t.Logf("Tanist, profile fast, %s: %v", f.name, o)
	for _, ip := range bothIPs {
		if o.twice[ip] > 0 {
			s.t.Errorf("%s, %s: two hosts answered %d probes, over %v", f.name, ip, o.twice[ip], o.over[ip])
		}
		// One run on a busy machine shows only that users get answers again.
		if limit := 3 * f.most; times > 1 && o.median(ip) > limit {
			s.t.Errorf("%s: outage at %s: %v, more than %v", f.name, ip, o.median(ip), limit)
		}
	}
	return o
}

// TestThawedHostDoesNotAnswerForTheVirtualIP: a whole host, with its network and its kernel, is
// frozen, and thaws after another has taken over. In the second round its sidecar thaws last, so
// the keeper alone must notice that the deadline has passed.
func TestThawedHostDoesNotAnswerForTheVirtualIP(t *testing.T) {
	s := newVIPSite(t)
	profile, guard := "fast", 100*time.Millisecond // the guard's margin
	if !*full {
		profile, guard = "default", 500*time.Millisecond // a busy machine takes long to freeze a host
	}
	for _, h := range []*vipHost{s.a, s.b} {
		h.sidecar(profile)
	}
	for _, first := range []string{"", "vip-keeper"} {
		active, passive := s.settled()
		w := s.watch(bothIPs...)
		s.await(vipPatience, "the host answers", func() bool { return w.lastAnswer(vip4, active.mac) > 0 && w.lastAnswer(vip6, active.mac) > 0 })
		at := now()
		active.unplug()
		active.signal(unix.SIGSTOP, "")
		// A frozen kernel ends no lifetime.
		s.run("ip", "netns", "exec", active.space, s.self, "vip-forever", vip4, vip6)
		s.await(vipPatience, "the other host answers", func() bool { return w.from(vip4, passive.name, at) && w.from(vip6, passive.name, at) })
		if !active.has(vip4) || !active.has(vip6) {
			t.Fatal("the frozen host lost an address")
		}
		all := active.processes(first)
		busy := testbed.Lateness(t)
		active.plug()
		thawed := now()
		for _, pid := range all {
			_ = unix.Kill(pid, unix.SIGCONT)
		}
		s.await(vipPatience, "the thawed host has neither address", func() bool { return !active.has(vip4) && !active.has(vip6) })
		margin := guard + busy()
		active.signal(unix.SIGCONT, "")
		s.settled()
		for _, ip := range bothIPs {
			late := max(0, time.Duration(w.lastAnswer(ip, active.mac)-thawed))
			t.Logf("%s: the thawed host answered for %v", ip, late)
			if late > margin {
				t.Errorf("%s: the thawed host answered for %v, want at most %v", ip, late, margin)
			}
		}
		w.end()
	}
}

// TestFrozenProcessesLetGoOfTheVirtualIP: every process of Tanist on the host is frozen, and the
// kernel still runs. It removes the address in time.
func TestFrozenProcessesLetGoOfTheVirtualIP(t *testing.T) {
	s := newVIPSite(t)
	for _, h := range []*vipHost{s.a, s.b} {
		h.sidecar("default")
	}
	active, passive := s.settled()
	w := s.watch(bothIPs...)
	at := now()
	active.signal(unix.SIGSTOP, "tanist sidecar", "tanist guard", "vip-keeper")
	s.await(vipPatience, "the other host answers", func() bool { return w.from(vip4, passive.name, at) && w.from(vip6, passive.name, at) })
	time.Sleep(300 * time.Millisecond)
	active.signal(unix.SIGCONT, "")
	s.settled()
	for _, ip := range bothIPs {
		if n, span := w.both(ip); n > 0 {
			t.Errorf("%s: two hosts answered %d probes, over %v", ip, n, span)
		}
		t.Logf("%s: the frozen host answered for %v after it froze", ip, time.Duration(w.lastAnswer(ip, active.mac)-at).Round(time.Millisecond))
	}
}

// TestSidecarKilledAndRestartedKeepsTheVirtualIP: users notice nothing, because the kernel never
// removes the address.
func TestSidecarKilledAndRestartedKeepsTheVirtualIP(t *testing.T) {
	const validity = 8 * time.Second // longer than a restart on a busy machine
	s := newVIPSite(t)
	for _, h := range []*vipHost{s.a, s.b} {
		h.sidecar("default, ttl: 12s, validity: 8s")
	}
	active, _ := s.settled()
	w, r := s.watch(bothIPs...), s.record()
	s.await(vipPatience, "the client gets answers", func() bool { return w.from(vip4, active.name, 0) && w.from(vip6, active.name, 0) })
	at := now()
	old := active.processes("tanist sidecar")
	keeper := active.processes("vip-keeper")
	active.signal(unix.SIGKILL, "tanist sidecar")
	active.boot(active.argv...)
	s.await(vipPatience, "another sidecar and keeper run", func() bool {
		k := active.processes("vip-keeper")
		return len(active.processes("tanist sidecar")) == 1 && !slices.Equal(old, active.processes("tanist sidecar")) && len(k) == 1 && !slices.Equal(k, keeper)
	})
	// The new sidecar renews it: the old one's deadline passes.
	s.await(vipPatience, "the old deadline has passed, and the lifetimes are renewed", func() bool { return r.renewed(active.name, at+int64(validity)) })
	if again, _ := s.settled(); again != active {
		t.Errorf("%s took over", again.name)
	}
	for _, ip := range bothIPs {
		t.Logf("longest time without an answer at %s: %v", ip, w.gap("http", ip, at, now()).Round(time.Millisecond))
	}
	r.kept(active.name)
}

// TestVirtualIPIsRemovedWhenTheGuardIsKilled: the program dies with its guard, and the sidecar
// removes the address long before the deadline. The store is frozen meanwhile, so it does so before
// it releases the lease, and not because the lease has ended.
func TestVirtualIPIsRemovedWhenTheGuardIsKilled(t *testing.T) {
	s := newVIPSite(t)
	for _, h := range []*vipHost{s.a, s.b} {
		h.sidecar("default, ttl: 45s, validity: 40s")
	}
	active, _ := s.settled()
	r := s.record()
	s.etcd.Freeze(t, 0)
	at := now()
	active.signal(unix.SIGKILL, "tanist guard")
	for _, ip := range bothIPs {
		removed := func() int64 {
			i := slices.IndexFunc(r.kernel(ip), func(s vipSeen) bool { return s.Kind == kernelRemoves && s.Who == active.name })
			if i < 0 {
				return 0
			}
			return r.kernel(ip)[i].At
		}
		s.await(vipPatience, ip+" is removed", func() bool { return removed() != 0 })
		took := time.Duration(removed() - at)
		t.Logf("%s: removed %v after the guard was killed", ip, took.Round(time.Millisecond))
		// The keeper alone would remove it after nearly 40 s.
		if took > 20*time.Second {
			t.Errorf("%s was removed %v after the guard was killed: that was not the sidecar", ip, took)
		}
	}
	s.await(vipPatience, "the program has ended", func() bool { return len(active.processes("vip-controller")) == 0 })
	thawed := now()
	s.etcd.Thaw(t, 0)
	next, _ := s.settled()
	// Otherwise the record may have ended before the addition that it is to judge.
	s.await(vipPatience, "the record shows who has the addresses", func() bool { return r.renewed(next.name, thawed) })
	r.neverOnTwo(active.name)
}

// vipOpen opens 50 connections to an address. The function that it returns waits until all have
// ended, and returns how each did and when.
func (s *vipSite) vipOpen(ip string) func() (ends map[string]int, at []int64) {
	s.t.Helper()
	cmd := exec.Command("ip", "netns", "exec", s.client.space, s.self, "vip-connections", net.JoinHostPort(ip, "8080"), "50")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		s.t.Fatal("cannot open the connections")
	}
	return func() (map[string]int, []int64) {
		ends := map[string]int{}
		var at []int64
		for lines.Scan() {
			var when int64
			var how string
			if _, err := fmt.Sscan(lines.Text(), &when, &how); err != nil {
				s.t.Fatal(err)
			}
			ends[how]++
			at = append(at, when)
		}
		_ = cmd.Wait()
		return ends, at
	}
}

// TestMovesWithOpenConnections: new connections reach the new active and, from the first one on, no
// other. Old ones are reset or closed, and never hang.
func TestMovesWithOpenConnections(t *testing.T) {
	s := newVIPSite(t)
	for _, h := range []*vipHost{s.a, s.b} {
		h.sidecar("default") // a planned move does not depend on the profile
	}
	moves := 2 * vipTimes()
	again := 0
	ends, took, fresh := map[string]int{}, map[string][]time.Duration{}, map[string][]time.Duration{}
	for range moves {
		active, passive := s.settled()
		w := s.watch(bothIPs...)
		s.await(vipPatience, "the client gets answers", func() bool { return w.from(vip4, active.name, 0) && w.from(vip6, active.name, 0) })
		wait4, wait6 := s.vipOpen(vip4), s.vipOpen(vip6)
		at := now()
		s.client.tanist("switchover", "-y", "-C", "vip", "--endpoints", s.store)
		for ip, wait := range map[string]func() (map[string]int, []int64){vip4: wait4, vip6: wait6} {
			how, when := wait()
			for word, n := range how {
				ends[word+" at "+ip] += n
			}
			for _, end := range when {
				took[ip] = append(took[ip], time.Duration(end-at))
			}
			if is, _ := s.settled(); is != passive {
				again++ // on a busy machine the other host's start may fail, and the first host resumes
				s.await(vipPatience, "new connections reach the active", func() bool { return w.from(ip, active.name, now()-int64(time.Second)) })
				continue
			}
			s.await(vipPatience, "new connections reach the new active", func() bool { return w.from(ip, passive.name, at) })
			seen := w.seen("http", ip)
			first := slices.IndexFunc(seen, func(one vipSeen) bool { return one.Who == passive.name })
			fresh[ip] = append(fresh[ip], time.Duration(seen[first].At-at))
			if w.from(ip, active.name, seen[first].At) {
				t.Errorf("%s: a new connection reached %s, which is not active any more", ip, active.name)
			}
		}
		w.end()
	}
	t.Logf("%d times the first host resumed", again)
	if again > moves/2 {
		t.Fatalf("%d times of %d the addresses did not move", again, 2*moves)
	}
	for _, ip := range bothIPs {
		slices.Sort(took[ip])
		slices.Sort(fresh[ip])
		if len(took[ip]) != 50*moves {
			t.Fatalf("%s: %d connections of %d ended", ip, len(took[ip]), 50*moves)
		}
		middle := func(all []time.Duration) string {
			return fmt.Sprintf("a median of %v, at most %v", all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond))
		}
		t.Logf("%s: %d moves; after the request, the 50 open connections ended within %s; the first new connection was answered after %s",
			ip, moves, middle(took[ip]), middle(fresh[ip]))
	}
	for how, n := range ends {
		t.Logf("%d connections: %s", n, how)
		if !strings.HasPrefix(how, "reset") && !strings.HasPrefix(how, "closed") {
			t.Errorf("%d connections: %s", n, how)
		}
	}
}

// TestVirtualIPOfAHostWhoseSidecarCannotHoldIt: tanist vip, without root, holds the addresses where
// the active controller is, even when it is killed, frozen or cut off, and never on two hosts.
func TestVirtualIPOfAHostWhoseSidecarCannotHoldIt(t *testing.T) {
	s := newVIPSite(t)
	for _, h := range []*vipHost{s.a, s.b} {
		h.sidecarWith("default", "")
		h.follower()
	}
	active, passive := s.settled()
	w := s.watch(bothIPs...)
	answers := func(h *vipHost, since int64) func() bool {
		return func() bool { return w.from(vip4, h.name, since) && w.from(vip6, h.name, since) }
	}
	s.await(vipPatience, "the client gets answers", answers(active, 0))

	s.keptByTheNextFollower(active, w)

	busy := testbed.Lateness(t)
	at := now()
	active.signal(unix.SIGSTOP, "tanist vip")
	s.client.tanist("switchover", "-y", "-C", "vip", "--endpoints", s.store)
	s.await(vipPatience, "the other host answers", answers(passive, at))
	for _, ip := range bothIPs {
		late := time.Duration(w.lastAnswer(ip, active.mac) - at)
		t.Logf("%s: frozen before a planned move: the old host answered for %v, outage %v", ip, late.Round(time.Millisecond),
			w.gap("http", ip, at, now()).Round(time.Millisecond))
		if most := 2500*time.Millisecond + busy(); late > most {
			t.Errorf("%s: the host answered for %v after its tanist vip was frozen, want at most %v", ip, late, most)
		}
	}
	active.signal(unix.SIGCONT, "tanist vip")
	active, passive = s.settled()
	s.showsFollower(active)

	if *full || *times > 0 {
		at = now()
		active.unplug()
		s.await(vipPatience, "the other host answers", answers(passive, at))
		healed := now()
		active.plug()
		s.settled()
		t.Logf("cut: outage %v", w.gap("http", vip4, at, healed).Round(time.Millisecond))
	}
	for _, ip := range bothIPs {
		if n, span := w.both(ip); n > 0 {
			t.Errorf("%s: two hosts answered %d probes, over %v", ip, n, span)
		}
	}
}

// keptByTheNextFollower kills and restarts a host's tanist vip. The kernel must not remove the
// addresses, unless the restart took so long that the last read was no longer valid.
func (s *vipSite) keptByTheNextFollower(h *vipHost, w *vipWatch) {
	s.t.Helper()
	// A read is valid for 2 s, and there is one every 0.5 s.
	const valid = 1400 * time.Millisecond
	for range 5 {
		r := s.record()
		at, keeper := now(), h.processes("vip-keeper")
		h.signal(unix.SIGKILL, "tanist vip")
		h.follower()
		s.await(vipPatience, "another keeper has taken over", func() bool {
			k := h.processes("vip-keeper")
			return len(k) == 1 && !slices.Equal(k, keeper)
		})
		s.await(vipPatience, "the last read is no longer valid, and the lifetimes are renewed", func() bool { return r.renewed(h.name, at+int64(2*time.Second)) })
		for _, ip := range bothIPs {
			s.t.Logf("%s: killed and restarted: longest time without an answer %v", ip, w.gap("http", ip, at, now()).Round(time.Millisecond))
		}
		late := slices.ContainsFunc(slices.Concat(r.kernel(vip4), r.kernel(vip6)), func(s vipSeen) bool {
			return s.Kind == kernelRemoves && s.At > at+int64(valid)
		})
		if !late {
			r.kept(h.name)
			return
		}
	}
	s.t.Fatal("the machine is too slow: tanist vip did not take over within 1.4 s")
}

// showsFollower waits until the commands show that the tanist vip of a host has the addresses.
func (s *vipSite) showsFollower(h *vipHost) {
	s.t.Helper()
	cli := s.cli()
	name := fmt.Sprintf("vip-%d (for %s)", h.number(), h.name)
	for _, ip := range []string{vip4 + "/24", vip6 + "/64"} {
		s.client.shows(name+" has "+ip+" on eth0.", append([]string{"explain"}, cli...)...)
	}
	s.client.shows(name+"  eth0", append([]string{"list"}, cli...)...)
	s.client.shows(`"vip_hosts"`, append([]string{"list", "-o", "json"}, cli...)...)
}

// shows waits until a command on the host prints a text.
func (h *vipHost) shows(text string, args ...string) {
	h.t.Helper()
	var out string
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if out = h.tanist(args...); strings.Contains(out, text) {
			return
		}
		if time.Since(begun) > vipPatience {
			h.t.Fatalf("%v does not show %q:\n%s", args, text, out)
		}
	}
}

// TestOnlyTheKeeperHasTheRightToChangeTheNetwork: the keeper has exactly two capabilities.
func TestOnlyTheKeeperHasTheRightToChangeTheNetwork(t *testing.T) {
	s := newVIPSite(t)
	s.a.sidecar("default")
	s.await(vipPatience, "it serves", func() bool { return s.role(s.a) == "serving" && s.a.has(vip4) })
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.a.processes("vip-keeper")[0]))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") {
			t.Log("the keeper: " + line)
		}
	}
	for _, want := range []string{"CapPrm:\t0000000000003000", "CapEff:\t0000000000003000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the keeper's status has no %q:\n%s", want, b)
		}
	}
}

// TestCommandsShowTheVirtualIP: the commands show where it is, and whether another host answers for
// it too.
func TestCommandsShowTheVirtualIP(t *testing.T) {
	s := newVIPSite(t)
	stranger := s.judge
	stranger.run("ip", "-n", stranger.space, "addr", "add", vip4+"/32", "dev", "eth0")
	s.a.sidecar("default")
	s.await(vipPatience, "it serves", func() bool { return s.role(s.a) == "serving" && s.a.has(vip4) })
	cli := []string{"-C", "vip", "--endpoints", s.store}
	s.client.shows("ctl-a has "+vip4+"/24 on eth0, but not alone: "+stranger.mac+" answers for "+vip4+" too", append([]string{"explain"}, cli...)...)
	s.client.shows("ctl-a has "+vip6+"/64 on eth0.", append([]string{"explain"}, cli...)...)
	s.client.shows("contested", append([]string{"list"}, cli...)...)
	s.a.shows(stranger.mac+" answers for it too", "doctor", "-c", s.a.file())
	stranger.run("ip", "-n", stranger.space, "addr", "del", vip4+"/32", "dev", "eth0")
	s.client.shows("ctl-a has "+vip4+"/24 on eth0.", append([]string{"explain"}, cli...)...)
	s.a.shows(vip4+"/24: nobody else answers for it", "doctor", "-c", s.a.file())
	s.a.shows("it is on this host, held by ctl-a", "doctor", "-c", s.a.file())
}
