package vip

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
)

// longEnough bounds every wait for something that must happen. It is not a claim about time: a
// loaded machine may take seconds to start a process.
const longEnough = 30 * time.Second

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "vip-keeper":
			os.Exit(Keep())
		case "vip-keeper-that-freezes":
			if err := os.Mkdir(os.Args[2], 0o700); err == nil {
				os.Exit(answerAndFreeze())
			}
			os.Exit(Keep())
		case "holder":
			os.Exit(holderMain(os.Args[2], os.Args[3:]))
		case "examine":
			a, err := ParseAddress(os.Args[2])
			fmt.Println("ok")
			for _, f := range Examine(context.Background(), []Address{a}, func(Address) string { return os.Args[3] }) {
				fmt.Println(f.Level, f.Text)
			}
			fmt.Println("end", err)
			os.Exit(0)
		case "answer":
			os.Exit(answerMain())
		case "reach":
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(os.Args[2], "9"), longEnough)
			if err == nil || errors.Is(err, unix.ECONNREFUSED) {
				fmt.Println("ok")
				os.Exit(0)
			}
			fmt.Println(conn, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// holderMain is a sidecar that obeys commands on stdin.
func holderMain(socket string, texts []string) int {
	var addresses []Address
	for _, text := range texts {
		a, err := ParseAddress(text)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		addresses = append(addresses, a)
	}
	h, err := Start(context.Background(), Config{
		Addresses: addresses, Socket: socket, Args: strings.Fields(cmp.Or(os.Getenv("TEST_KEEPER"), "vip-keeper")), Log: zerolog.New(os.Stderr),
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer h.Close()
	fmt.Println("ok")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var op string
		var term, ms int64
		_, _ = fmt.Sscan(in.Text(), &op, &term, &ms)
		ctx, cancel := context.WithTimeout(context.Background(), longEnough)
		var err error
		deadline := election.BootClock().Add(time.Duration(ms) * time.Millisecond)
		switch op {
		case "look":
			h.Look()
		case "hold":
			err = h.Hold(ctx, election.Term(term), deadline)
		case "extend":
			h.Extend(deadline)
		case "release":
			err = h.Release(ctx)
		case "answered": // a keeper has carried out all orders, extensions too
			err = h.await(ctx, func(_ report, by *running) error {
				if by.acked < by.seq {
					return errWait
				}
				return nil
			})
		case "freeze": // of the keeper, and of this process while an answer is due
			err = freeze(h.pid(), func() { h.Extend(deadline) })
		case "keeper":
			fmt.Println(h.pid())
			cancel()
			continue
		case "status":
			b, _ := json.Marshal(h.Statuses())
			fmt.Println(string(b))
			cancel()
			continue
		}
		cancel()
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println("ok")
	}
	return 0
}

func (h *Holder) pid() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keeper == nil {
		return 0
	}
	return h.keeper.cmd.Process.Pid
}

// freeze stops the keeper, gives an order, and stops this process. Once this process goes on, the
// keeper does too, a little later, which is the worse order. No other process is needed in between,
// so a busy machine does not turn this into a keeper that is frozen alone.
func freeze(keeper int, order func()) error {
	if err := unix.Kill(keeper, unix.SIGSTOP); err != nil {
		return err
	}
	order()
	if err := unix.Kill(os.Getpid(), unix.SIGSTOP); err != nil {
		return err
	}
	time.Sleep(2 * answerCheck)
	return unix.Kill(keeper, unix.SIGCONT)
}

// answerAndFreeze is a keeper that freezes when it has answered its first order to hold: the network
// is being asked.
func answerAndFreeze() int {
	f := os.NewFile(controlFD, "control")
	conn, err := net.FileConn(f)
	if err != nil {
		return 1
	}
	control, buf := conn.(*net.UnixConn), make([]byte, recordMax)
	var o order
	for o.Op != orderHold {
		if recv(control, buf, &o) != nil || send(control, report{Seq: o.Seq, Holding: o.Op == orderHold, Term: o.Term, Addresses: []Status{{State: StateAbsent}}}) != nil {
			return 1
		}
	}
	_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
	return 1
}

// answerMain prints the claims on eth0 until stdin ends.
func answerMain() int {
	heard := make(chan claim, 100)
	i := view{}
	k, err := openKernel()
	if err == nil {
		i, err = k.look()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	p, err := openPort("eth0", i.links["eth0"].index, []Address{
		{netip.MustParsePrefix("10.0.0.1/24"), "eth0"}, {netip.MustParsePrefix("fd00::1/64"), "eth0"},
	}, heard)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer p.close()
	fmt.Println("ok")
	go func() {
		for c := range heard {
			fmt.Println(c.ip, c.mac)
		}
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// space is two network namespaces with a link between them.
type space struct {
	t    *testing.T
	a, b string
	env  []string // of what is started from now on
}

func newSpace(t *testing.T) *space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	t.Parallel()
	name := "tvip-" + strings.ToLower(rand.Text()[:8])
	s := &space{t: t, a: name + "-a", b: name + "-b"}
	for _, n := range []string{s.a, s.b} {
		s.run("ip", "netns", "add", n)
		t.Cleanup(func() { s.run("ip", "netns", "del", n) })
		s.run("ip", "-n", n, "link", "set", "lo", "up")
	}
	s.run("ip", "-n", s.a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", s.b)
	for i, n := range []string{s.a, s.b} {
		s.run("ip", "netns", "exec", n, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
		s.run("ip", "-n", n, "addr", "add", fmt.Sprintf("10.0.0.%d/24", i+1), "dev", "eth0")
		s.run("ip", "-n", n, "addr", "add", fmt.Sprintf("fd00::%d/64", i+1), "dev", "eth0", "nodad")
		s.run("ip", "-n", n, "link", "set", "eth0", "up")
	}
	return s
}

func (s *space) run(argv ...string) string {
	s.t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// has reports whether the first host has an address.
func (s *space) has(ip string) bool {
	s.t.Helper()
	return strings.Contains(s.run("ip", "-n", s.a, "-o", "addr", "show", "dev", "eth0"), " "+ip+"/")
}

func (s *space) await(what string, holds func() bool) {
	s.t.Helper()
	for begun := time.Now(); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Since(begun) > longEnough {
			s.t.Fatalf("timed out after %v: %s; the addresses are\n%s", longEnough, what, s.run("ip", "-n", s.a, "addr", "show", "dev", "eth0"))
		}
	}
}

// session is a helper process with a line-based dialogue.
type session struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func (s *space) start(in string, args ...string) *session {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	h := &session{t: s.t, cmd: exec.Command("ip", append([]string{"netns", "exec", in, self}, args...)...)}
	h.cmd.Stderr, h.cmd.Env = os.Stderr, append(os.Environ(), s.env...)
	h.in, err = h.cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	h.out = bufio.NewScanner(out)
	if err := h.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	var once sync.Once
	s.t.Cleanup(func() { once.Do(func() { _ = h.cmd.Process.Kill(); _ = h.cmd.Wait() }) })
	if line := h.line(); line != "ok" {
		s.t.Fatalf("%s: %s", args[0], line)
	}
	return h
}

func (h *session) line() string {
	h.t.Helper()
	if !h.out.Scan() {
		h.t.Fatal("the helper has ended")
	}
	return h.out.Text()
}

func (h *session) say(format string, args ...any) string {
	h.t.Helper()
	fmt.Fprintf(h.in, format+"\n", args...)
	return h.line()
}

func (h *session) must(format string, args ...any) {
	h.t.Helper()
	if answer := h.say(format, args...); answer != "ok" {
		h.t.Fatalf(format+": %s", append(args, answer)...)
	}
}

func (h *session) kill(pid int, sig unix.Signal) {
	h.t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		h.t.Fatal(err)
	}
}

func (h *session) keeper() int {
	h.t.Helper()
	pid, err := strconv.Atoi(h.say("keeper"))
	if err != nil {
		h.t.Fatal(err)
	}
	return pid
}

func TestHeldAddressesAreMarkedAnnouncedAndRemoved(t *testing.T) {
	s := newSpace(t)
	s.run("ip", "-n", s.a, "addr", "add", "10.0.0.50/24", "dev", "eth0") // somebody's
	other := s.start(s.b, "answer")
	h := s.start(s.a, "holder", "", "10.0.0.100/24@eth0", "fd00::100/64@eth0", "10.0.0.50/24@eth0")
	if answer := h.say("hold 1 60000"); !strings.Contains(answer, "Tanist did not add it") {
		t.Errorf("a foreign address was not reported: %s", answer)
	}
	if !s.has("10.0.0.100") || !s.has("fd00::100") {
		t.Error("the addresses were not added")
	}
	if all := s.run("ip", "-n", s.a, "-o", "addr", "show", "dev", "eth0"); !strings.Contains(all, "eth0:tanist") || !strings.Contains(all, "deprecated") {
		t.Errorf("they are not marked, or the IPv6 one would be used for outgoing connections:\n%s", all)
	}
	claimed := map[string]int{}
	for claimed["10.0.0.100"] < 4 || claimed["fd00::100"] < 2 { // two frames each time for IPv4
		ip, _, _ := strings.Cut(other.line(), " ")
		claimed[ip]++
	}
	s.start(s.b, "reach", "10.0.0.100")
	s.start(s.b, "reach", "fd00::100")
	h.must("release")
	if s.has("10.0.0.100") || s.has("fd00::100") {
		t.Error("they are there after the release")
	}
	if !s.has("10.0.0.50") || claimed["10.0.0.50"] > 0 {
		t.Error("an address of somebody's was removed or announced")
	}
	if routes := s.run("ip", "-n", s.a, "-6", "route"); !strings.Contains(routes, "fd00::/64 dev eth0") || strings.Contains(routes, "expires") {
		t.Errorf("the network's own route was changed:\n%s", routes)
	}
}

// TestAddressIsAnnouncedAtOnceAndAgainWithinASecond: one announcement may be lost. The same after
// the interface has got another hardware address, because neighbors know the old one.
func TestAddressIsAnnouncedAtOnceAndAgainWithinASecond(t *testing.T) {
	s := newSpace(t)
	other := s.start(s.b, "answer")
	claims := make(chan string)
	go func() { // ends with the helper
		for other.out.Scan() {
			select {
			case claims <- other.out.Text():
			case <-t.Context().Done():
				return
			}
		}
	}()
	h := s.start(s.a, "holder", "", "10.0.0.100/24@eth0", "fd00::100/64@eth0")
	announced := func(mac string) {
		t.Helper()
		// At 0, 20, 60, 150 and 400 ms, two frames each time for IPv4. The regular ones are 30 s apart.
		missing := map[string]int{"10.0.0.100 " + mac: 10, "fd00::100 " + mac: 5}
		const busy = 10 * time.Second // a busy machine needs more than 400 ms
		for timer := time.NewTimer(busy); len(missing) > 0; {
			select {
			case claim := <-claims:
				if missing[claim]--; missing[claim] <= 0 {
					delete(missing, claim)
				}
			case <-timer.C:
				t.Fatalf("not announced within %v: %v", busy, missing)
			}
		}
	}
	mac := func() string {
		_, rest, _ := strings.Cut(s.run("ip", "-n", s.a, "-o", "link", "show", "eth0"), "link/ether ")
		return strings.Fields(rest)[0]
	}
	h.must("hold 1 30000")
	announced(mac())
	time.Sleep(8 * time.Second) // after that, one regular announcement at most is due within busy
	s.run("ip", "-n", s.a, "link", "set", "eth0", "address", "02:00:00:00:00:77")
	announced("02:00:00:00:00:77")
	h.must("release")
}

// TestAddressThatCannotBeAddedIsNotAnnounced: the announcement would lead users astray.
func TestAddressThatCannotBeAddedIsNotAnnounced(t *testing.T) {
	s := newSpace(t)
	s.run("ip", "netns", "exec", s.a, "sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
	other := s.start(s.b, "answer")
	h := s.start(s.a, "holder", "", "10.0.0.100/24@eth0", "fd00::100/64@eth0")
	if answer := h.say("hold 1 8000"); !strings.Contains(answer, "cannot add fd00::100/64") {
		t.Errorf("the failure was not reported: %s", answer)
	}
	for n := 0; n < 10; { // the failed one is tried again meanwhile
		switch ip, _, _ := strings.Cut(other.line(), " "); ip {
		case "10.0.0.100":
			n++
		case "fd00::100":
			t.Fatal("an address that could not be added was announced")
		}
	}
	h.must("release")
}

func TestKeeperLetsGoAtTheDeadlineWhateverIsFrozenOrDead(t *testing.T) {
	const (
		validity = 4500 * time.Millisecond
		// The kernel may act earlier, because it counts in whole seconds, after lifeMargin.
		early = 1500 * time.Millisecond
	)
	both := func(sig unix.Signal) func(h *session) {
		return func(h *session) { k := h.keeper(); h.kill(h.cmd.Process.Pid, sig); h.kill(k, sig) }
	}
	for name, fault := range map[string]func(h *session){
		"sidecar killed":             func(h *session) { h.kill(h.cmd.Process.Pid, unix.SIGKILL) },
		"sidecar frozen":             func(h *session) { h.kill(h.cmd.Process.Pid, unix.SIGSTOP) },
		"sidecar and keeper frozen":  both(unix.SIGSTOP),
		"sidecar and keeper killed":  both(unix.SIGKILL),
		"neither, but no extensions": func(*session) {},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSpace(t)
			h := s.start(s.a, "holder", "", "10.0.0.100/24@eth0", "fd00::100/64@eth0")
			h.must("hold 1 %d", validity.Milliseconds())
			pid := h.keeper()
			time.Sleep(500 * time.Millisecond)
			late := testbed.Lateness(t)
			before := time.Now()
			h.must("extend 1 %d", validity.Milliseconds())
			h.must("answered")
			after := time.Now()
			fault(h)
			t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
			var seen time.Time // when it was last asked whether one is there, and one was
			s.await("both are removed", func() bool {
				now := time.Now()
				there := s.has("10.0.0.100") || s.has("fd00::100")
				if there {
					seen = now
				}
				return !there
			})
			if took := time.Since(before); took < validity-early {
				t.Errorf("removed %v after the extension by %v", took, validity)
			}
			if kept, most := seen.Sub(after), validity+150*time.Millisecond+late(); kept > most {
				t.Errorf("there %v after the extension by %v, want at most %v", kept, validity, most)
			}
		})
	}
}

func TestKeeperThatIsKilledOrFrozenIsReplacedWithoutAGap(t *testing.T) {
	const validity = 10 * time.Second // the lifetime in the kernel, which must not end, is shorter
	for name, sig := range map[string]unix.Signal{"killed": unix.SIGKILL, "frozen": unix.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			s := newSpace(t)
			h := s.start(s.a, "holder", filepath.Join(t.TempDir(), "vip.sock"), "10.0.0.100/24@eth0")
			h.must("hold 1 %d", validity.Milliseconds())
			old := h.keeper()
			h.kill(old, sig)
			for begun := time.Now(); time.Since(begun) < validity; time.Sleep(20 * time.Millisecond) {
				h.must("extend 1 %d", validity.Milliseconds())
				if !s.has("10.0.0.100") {
					t.Fatal("the address was away")
				}
			}
			if h.keeper() == old {
				t.Error("the keeper was not replaced")
			}
			h.must("release")
			if s.has("10.0.0.100") {
				t.Error("the new keeper did not remove it")
			}
		})
	}
}

// TestOrderIsCarriedOutByTheNextKeeperIfThisOneDoesNot: what the next one reports before it knows
// the order is not mistaken for its answer.
func TestOrderIsCarriedOutByTheNextKeeperIfThisOneDoesNot(t *testing.T) {
	s := newSpace(t)
	h := s.start(s.a, "holder", filepath.Join(t.TempDir(), "vip.sock"), "10.0.0.100/24@eth0")
	h.kill(h.keeper(), unix.SIGSTOP)
	h.must("hold 1 60000")
	if !s.has("10.0.0.100") {
		t.Error("the address was not added")
	}
	h.kill(h.keeper(), unix.SIGSTOP)
	h.must("release")
	if s.has("10.0.0.100") {
		t.Error("the address was not removed")
	}
}

// TestKeeperThatFreezesAfterItsAnswerIsReplaced: it owes nothing, but the address is not there yet.
func TestKeeperThatFreezesAfterItsAnswerIsReplaced(t *testing.T) {
	s := newSpace(t)
	dir := t.TempDir()
	s.env = []string{"TEST_KEEPER=vip-keeper-that-freezes " + filepath.Join(dir, "it-froze")}
	h := s.start(s.a, "holder", filepath.Join(dir, "vip.sock"), "10.0.0.100/24@eth0")
	h.must("hold 1 60000")
	if !s.has("10.0.0.100") {
		t.Error("the address was not added")
	}
	h.must("release")
}

func TestLaterSidecarTakesTheAddressesOverWithoutAGap(t *testing.T) {
	for name, freeze := range map[string]bool{"": false, "from a frozen keeper": true} {
		t.Run(name, func(t *testing.T) {
			s := newSpace(t)
			args := []string{"holder", filepath.Join(t.TempDir(), "vip.sock"), "10.0.0.100/24@eth0", "fd00::100/64@eth0"}
			first := s.start(s.a, args...)
			first.must("hold 3 60000")
			keeper := first.keeper()
			if freeze {
				first.kill(keeper, unix.SIGSTOP)
			}
			first.kill(first.cmd.Process.Pid, unix.SIGKILL)
			_ = first.cmd.Wait() // until then it may have the lock
			away := make(chan bool, 1)
			done := make(chan struct{})
			go func() {
				for {
					select {
					case <-done:
						away <- false
						return
					default:
					}
					if !s.has("10.0.0.100") || !s.has("fd00::100") {
						away <- true
						return
					}
				}
			}()
			second := s.start(s.a, args...)
			second.must("hold 3 60000")
			time.Sleep(300 * time.Millisecond)
			close(done)
			if <-away {
				t.Error("an address was away for a moment")
			}
			s.await("the earlier keeper has ended", func() bool { return unix.Kill(keeper, 0) != nil || zombie(keeper) })
			second.must("release")
			if s.has("10.0.0.100") || s.has("fd00::100") {
				t.Error("they were not removed")
			}
		})
	}
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestKeeperHasTwoCapabilitiesAndItsSidecarNeedsNoMore(t *testing.T) {
	s := newSpace(t)
	h := s.start(s.a, "holder", "", "10.0.0.100/24@eth0")
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.keeper()))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^(Cap\w+|NoNewPrivs):\s+(\w+)`).FindAllStringSubmatch(string(b), -1) {
		got[m[1]] = m[2]
	}
	if got["NoNewPrivs"] == "0" && len(cgo) > 0 {
		t.Skip("built with cgo, which cannot drop capabilities on all threads")
	}
	for key, want := range map[string]string{"CapEff": "0000000000003000", "CapPrm": "0000000000003000", "CapAmb": "0000000000000000", "NoNewPrivs": "1"} {
		if got[key] != want {
			t.Errorf("%s is %s, not %s", key, got[key], want)
		}
	}
}

func TestSomebodyElsesAnswerIsSeenBeforeAndAfter(t *testing.T) {
	s := newSpace(t)
	s.run("ip", "-n", s.b, "addr", "add", "10.0.0.100/32", "dev", "eth0")
	s.run("ip", "-n", s.b, "addr", "add", "fd00::100/128", "dev", "eth0", "nodad")
	h := s.start(s.a, "holder", "", "10.0.0.100/24@eth0", "fd00::100/64@eth0")
	late := testbed.Lateness(t)
	h.must("hold 1 60000")
	contested := func() int { return strings.Count(h.say("status"), `"state":"contested"`) }
	// A keeper that did not run for lookFor has taken an address before it read the answer.
	if n := contested(); n != 2 && late() < lookFor/2 {
		t.Errorf("%d addresses are contested: %s", n, h.say("status"))
	}
	s.await("the answers are noticed", func() bool { return contested() == 2 })
	if !s.has("10.0.0.100") || !s.has("fd00::100") {
		t.Error("the addresses were not taken")
	}
	s.run("ip", "-n", s.b, "addr", "del", "10.0.0.100/32", "dev", "eth0")
	s.run("ip", "-n", s.b, "addr", "del", "fd00::100/128", "dev", "eth0")
	s.await("nobody else answers any more", func() bool { return contested() == 0 })
	h.must("release") // or the keeper would stay until the deadline
}

// examined returns what doctor finds about an address, with holder as the controller that has it.
func (s *space) examined(address, holder string) string {
	s.t.Helper()
	h := s.start(s.a, "examine", address, holder)
	all := ""
	for {
		line := h.line()
		if strings.HasPrefix(line, "end") {
			return all
		}
		all += line + "\n"
	}
}

func TestExamineTellsWhatWouldKeepUsersAway(t *testing.T) {
	s := newSpace(t)
	const fine, warning, failure = "0 ", "1 ", "2 "
	check := func(address, holder string, want ...string) {
		t.Helper()
		got := s.examined(address, holder)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: no %q in\n%s", address, w, got)
			}
		}
	}
	check("10.0.0.100/24@eth0", "", fine+"interface eth0 is up and in its network", fine+"nobody else answers for it")
	check("fd00::100/64@eth0", "", fine+"interface eth0 is up and in its network", fine+"nobody else answers for it")
	check("10.0.0.100/24@eth1", "", failure+"there is no interface eth1")
	check("10.0.0.100/24@eth0", "ctl-b", failure+"nobody answers for it on eth0, and ctl-b holds it")
	s.run("ip", "netns", "exec", s.a, "sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=1")
	check("10.9.0.100/24@eth0", "", warning+"eth0 has no other address in the network", warning+"rp_filter is strict on eth0")
	s.run("ip", "-n", s.b, "addr", "add", "10.0.0.100/32", "dev", "eth0")
	s.run("ip", "-n", s.b, "addr", "add", "fd00::100/128", "dev", "eth0", "nodad")
	check("10.0.0.100/24@eth0", "", failure+"", "answers for it, and no controller holds it")
	check("fd00::100/64@eth0", "", failure+"", "answers for it, and no controller holds it")
	check("10.0.0.100/24@eth0", "ctl-b", fine+"", "answers for it, held by ctl-b")
	s.run("ip", "-n", s.a, "addr", "add", "10.0.0.100/24", "dev", "eth0")
	check("10.0.0.100/24@eth0", "", failure+"it is on eth0, and Tanist did not add it", "answers for it too")
	s.run("ip", "-n", s.a, "link", "set", "eth0", "down")
	check("10.0.0.100/24@eth0", "", failure+"interface eth0 is down")
}

func TestSecondLiveSidecarDoesNotTakeTheAddressesOver(t *testing.T) {
	s := newSpace(t)
	socket := filepath.Join(t.TempDir(), "vip.sock")
	first := s.start(s.a, "holder", socket, "10.0.0.100/24@eth0")
	first.must("hold 3 60000")
	keeper := first.keeper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ip", "netns", "exec", s.a, self, "holder", socket, "10.0.0.100/24@eth0").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another live process holds them") {
		t.Errorf("the second was not refused: %v, %s", err, out)
	}
	if first.keeper() != keeper || !s.has("10.0.0.100") {
		t.Error("the first lost its keeper or the address")
	}
	first.must("release")
}

// TestKeeperThatWasFrozenWithItsSidecarIsNotReplaced: after a thaw of both the keeper is as good as
// before, and the first to see that a deadline has passed.
func TestKeeperThatWasFrozenWithItsSidecarIsNotReplaced(t *testing.T) {
	s := newSpace(t)
	h := s.start(s.a, "holder", "", "10.0.0.100/24@eth0")
	h.must("hold 1 60000")
	keeper := h.keeper()
	for _, frozen := range []time.Duration{answerWithin + 50*time.Millisecond, answerWithin + 300*time.Millisecond, 2 * answerWithin} {
		fmt.Fprintln(h.in, "freeze 1 60000")
		s.await("both are frozen", func() bool { return stopped(keeper) && stopped(h.cmd.Process.Pid) })
		time.Sleep(frozen)
		late := testbed.Lateness(t)
		h.kill(h.cmd.Process.Pid, unix.SIGCONT)
		if answer := h.line(); answer != "ok" {
			t.Fatalf("cannot freeze both: %s", answer)
		}
		h.must("hold 1 60000") // a keeper has answered
		if now := h.keeper(); now != keeper {
			// A keeper that did not run after the thaw is replaced like one that is frozen alone.
			if late() < answerWithin/4 {
				t.Fatalf("the keeper was replaced after both were frozen for %v", frozen)
			}
			keeper = now
		}
	}
	h.must("release")
}

// stopped reports whether every thread of a process is stopped.
func stopped(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, file := range threads {
		b, errRead := os.ReadFile(file)
		err = errors.Join(err, errRead)
		if !strings.Contains(string(b), ") T ") {
			return false
		}
	}
	return err == nil && len(threads) > 0
}

func TestDeadlineIsStickyForALaterKeeperToo(t *testing.T) {
	s := newSpace(t)
	h := s.start(s.a, "holder", "", "10.0.0.100/24@eth0")
	h.must("hold 1 3000")
	keeper := h.keeper()
	time.Sleep(3100 * time.Millisecond)
	h.must("extend 1 60000")
	h.kill(keeper, unix.SIGKILL)
	s.await("another keeper is there", func() bool { k := h.keeper(); return k != 0 && k != keeper })
	h.must("answered")
	time.Sleep(300 * time.Millisecond)
	if s.has("10.0.0.100") {
		t.Error("the late extension brought the address back")
	}
}
