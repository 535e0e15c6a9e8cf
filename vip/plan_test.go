package vip

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

func must(t *testing.T, text string) Address {
	t.Helper()
	a, err := ParseAddress(text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// host is a kernel for the desk that carries out every action.
type host struct {
	t     *testing.T
	desk  *desk
	now   election.Instant
	view  view
	sent  []action
	ends  map[string]election.Instant
	steps int
}

func newHost(t *testing.T, addresses ...string) *host {
	t.Helper()
	all := make([]Address, 0, len(addresses))
	for _, a := range addresses {
		all = append(all, must(t, a))
	}
	return &host{
		t: t, desk: newDesk(all), now: election.Instant(time.Hour), ends: map[string]election.Instant{},
		view: view{links: map[string]link{"eth0": {index: 2, up: true, mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}},
	}
}

// run advances the time, like the keeper's loop.
func (h *host) run(d time.Duration) {
	h.t.Helper()
	for end := h.now.Add(d); ; {
		h.expire()
		acts, next := h.desk.plan(h.now, h.view)
		for _, a := range acts {
			h.do(a)
		}
		if h.steps++; h.steps > 100000 {
			h.t.Fatal("the desk does not come to rest")
		}
		if len(acts) == 0 && next <= h.now {
			h.t.Fatalf("nothing is due at %v, and the next check is due at %v", h.now, next)
		}
		if next > end {
			h.now = end
			h.expire()
			return
		}
		h.now = max(next, h.now)
	}
}

// expire is the kernel's timer.
func (h *host) expire() {
	kept := h.view.there[:0]
	for _, p := range h.view.there {
		if end, ok := h.ends[p.String()]; !ok || h.now < end {
			kept = append(kept, p)
		}
	}
	h.view.there = kept
}

func (h *host) do(a action) {
	switch a.kind {
	case actionAdd:
		h.view.there = append(h.view.there, present{Address: a.Address, mine: true, life: a.life})
		h.ends[a.String()] = h.now.Add(a.life)
	case actionRenew:
		h.ends[a.String()] = h.now.Add(a.life)
	case actionRemove:
		h.ends[a.String()] = h.now
		h.expire()
	}
	h.sent = append(h.sent, a)
}

func (h *host) has() bool { return len(h.view.there) > 0 }

func (h *host) count(kind actionKind) (n int) {
	for _, a := range h.sent {
		if a.kind == kind {
			n++
		}
	}
	return n
}

func (h *host) hold(term election.Term, d time.Duration) {
	h.t.Helper()
	if err := h.desk.hold(h.now, term, h.now.Add(d)); err != nil {
		h.t.Fatal(err)
	}
}

func TestAddressIsTakenAfterTheNetworkWasAsked(t *testing.T) {
	h := newHost(t, "10.0.0.100/24@eth0")
	h.hold(1, 4*time.Second)
	h.run(lookFor - time.Millisecond)
	if h.has() {
		t.Error("it was taken before the network could answer")
	}
	h.run(2 * time.Millisecond)
	if !h.has() || h.desk.spots[0].State != StateHeld {
		t.Errorf("it was not taken: %+v", h.desk.spots[0].Status)
	}
	if n := h.count(actionProbe); n < 3 {
		t.Errorf("%d probes were sent before it was taken", n)
	}
}

func TestAddressThatWasLookedForIsTakenAtOnce(t *testing.T) {
	h := newHost(t, "10.0.0.100/24@eth0")
	h.desk.look(h.now)
	h.run(time.Second)
	if n := h.count(actionProbe); n == 0 || n > 5 {
		t.Errorf("%d probes while the controller starts", n)
	}
	h.hold(1, 4*time.Second)
	h.run(0)
	if !h.has() {
		t.Error("it was not taken at once")
	}
}

func TestAddressIsRemovedAtTheDeadlineAndTheDeadlineIsSticky(t *testing.T) {
	h := newHost(t, "10.0.0.100/24@eth0")
	h.hold(7, 4*time.Second)
	h.run(2 * time.Second)
	h.desk.extend(h.now, 7, h.now.Add(4*time.Second))
	h.run(3900 * time.Millisecond)
	if !h.has() {
		t.Fatal("it is gone before the deadline")
	}
	h.run(101 * time.Millisecond)
	if h.has() {
		t.Fatal("it is there after the deadline")
	}
	h.desk.extend(h.now, 7, h.now.Add(time.Minute))
	if err := h.desk.hold(h.now, 7, h.now.Add(time.Minute)); err == nil {
		t.Error("a term whose deadline has passed holds again")
	}
	h.run(time.Second)
	if h.has() {
		t.Error("a late renewal brought it back")
	}
	h.hold(8, 4*time.Second)
	h.run(time.Second)
	if !h.has() {
		t.Error("a later term could not take it")
	}
}

// TestKernelRemovesTheAddressOfAFrozenKeeperByItself: nothing runs from some moment on, and the
// deadline passes.
func TestKernelRemovesTheAddressOfAFrozenKeeperByItself(t *testing.T) {
	const kernelLate = 270 * time.Millisecond // of its timer
	for _, validity := range []time.Duration{4 * time.Second, 2 * time.Second, 15 * time.Second} {
		for frozen := time.Duration(0); frozen < validity-lifeMargin; frozen += 77 * time.Millisecond {
			h := newHost(t, "10.0.0.100/24@eth0")
			h.hold(1, validity)
			for range 20 {
				h.run(validity / 8)
				if !h.has() {
					t.Fatalf("validity %v: lost while it was renewed", validity)
				}
				h.desk.extend(h.now, 1, h.now.Add(validity))
			}
			deadline := h.now.Add(validity)
			h.run(frozen)
			left := deadline.Sub(h.now)
			h.now = deadline.Add(-kernelLate) // nothing but the kernel runs
			// A second is the shortest lifetime: doc.go says what that means for what is left at
			// the end.
			if h.expire(); h.has() && left > time.Second+lifeMargin {
				t.Fatalf("validity %v, frozen %v before the deadline: the kernel keeps the address", validity, left)
			}
			h.now = deadline.Add(time.Second)
			if h.expire(); h.has() {
				t.Fatalf("validity %v, frozen %v before the deadline: the kernel keeps the address for more than a second", validity, left)
			}
		}
	}
}

func TestAddressOfShortValidityIsKeptWhileItIsRenewed(t *testing.T) {
	h := newHost(t, "10.0.0.100/24@eth0")
	h.hold(1, 500*time.Millisecond)
	h.run(100 * time.Millisecond)
	for range 50 {
		h.desk.extend(h.now, 1, h.now.Add(500*time.Millisecond))
		h.run(200 * time.Millisecond)
		if !h.has() {
			t.Fatal("it was lost although it was renewed in time")
		}
	}
}

func TestAddressOfAnotherIsNeitherRemovedNorChanged(t *testing.T) {
	h := newHost(t, "10.0.0.100/24@eth0")
	h.view.there = []present{{Address: must(t, "10.0.0.100/32@eth0"), life: forever}}
	h.run(time.Second)
	h.hold(1, 4*time.Second)
	h.run(time.Second)
	if s := h.desk.spots[0]; s.State != StateForeign || s.Why == "" {
		t.Errorf("the state is %+v", s.Status)
	}
	h.desk.release()
	h.run(time.Second)
	for _, a := range h.sent {
		if a.kind == actionAdd || a.kind == actionRenew || a.kind == actionRemove {
			t.Errorf("it was touched: %+v", a)
		}
	}
}

func TestAddressOfAnEarlierKeeperIsKeptWithoutAGapAndRemovedWhenNotWanted(t *testing.T) {
	h := newHost(t, "10.0.0.100/24@eth0")
	h.view.there = []present{{Address: must(t, "10.0.0.100/24@eth0"), mine: true, life: 3 * time.Second}}
	h.ends["10.0.0.100/24@eth0"] = h.now.Add(3 * time.Second)
	h.desk.inherit(h.now, nil, h.view)
	h.run(time.Second)
	h.hold(4, 4*time.Second)
	h.run(3 * time.Second)
	if !h.has() || h.count(actionRemove) > 0 || h.count(actionAdd) > 0 {
		t.Errorf("it was not just kept: %+v", h.sent)
	}
	h.desk.release()
	h.run(0)
	if h.has() {
		t.Error("it was not removed")
	}
}

// TestMissingAddressOfAnEarlierKeeperIsTakenToo: after the network was asked, as always. The desk of
// the test fails if it does not come to rest.
func TestMissingAddressOfAnEarlierKeeperIsTakenToo(t *testing.T) {
	h := newHost(t, "10.0.0.100/24@eth0", "10.0.0.101/24@eth0")
	h.view.there = []present{{Address: must(t, "10.0.0.100/24@eth0"), mine: true, life: 3 * time.Second}}
	h.ends["10.0.0.100/24@eth0"] = h.now.Add(3 * time.Second)
	h.desk.inherit(h.now, &report{Holding: true, Term: 4, Deadline: h.now.Add(4 * time.Second)}, h.view)
	h.run(lookFor - time.Millisecond)
	if len(h.view.there) != 1 || h.count(actionProbe) == 0 {
		t.Errorf("the network was not asked first: %+v", h.sent)
	}
	h.run(2 * time.Millisecond)
	if len(h.view.there) != 2 {
		t.Errorf("the other address was not taken: %+v", h.sent)
	}
}

// TestAddressThatAnEarlierKeeperNoLongerHeldIsRemoved: its deadline passed just before another
// keeper relieved it, and no later one brings it back.
func TestAddressThatAnEarlierKeeperNoLongerHeldIsRemoved(t *testing.T) {
	h := newHost(t, "10.0.0.100/24@eth0")
	h.view.there = []present{{Address: must(t, "10.0.0.100/24@eth0"), mine: true, life: time.Second}}
	h.ends["10.0.0.100/24@eth0"] = h.now.Add(time.Second)
	h.desk.inherit(h.now, &report{Lapsed: 4}, h.view)
	h.run(0)
	if h.has() {
		t.Error("it was kept")
	}
	if err := h.desk.hold(h.now, 4, h.now.Add(time.Second)); err == nil {
		t.Error("the term whose deadline has passed holds it again")
	}
}

func TestAddressThatAnotherAnswersForIsTakenAnnouncedAndReported(t *testing.T) {
	h := newHost(t, "10.0.0.100/24@eth0")
	stranger := claim{netip.MustParseAddr("10.0.0.100"), net.HardwareAddr{2, 0, 0, 0, 0, 9}}
	h.hold(1, time.Minute)
	h.run(time.Millisecond)
	h.desk.heard(h.now, stranger, h.view)
	h.run(0)
	if s := h.desk.spots[0]; !h.has() || s.State != StateContested || s.By != "02:00:00:00:00:09" || s.Why == "" {
		t.Fatalf("the state is %+v", s.Status)
	}
	h.run(3 * time.Second)
	before := h.count(actionAnnounce)
	h.desk.heard(h.now, stranger, h.view)
	h.run(100 * time.Millisecond)
	if h.count(actionAnnounce) == before {
		t.Error("an answer of another was not followed by an announcement")
	}
	for range 100 { // a flood of answers is not answered by one of ours
		h.desk.heard(h.now, stranger, h.view)
		h.run(time.Millisecond)
	}
	if n := h.count(actionAnnounce) - before; n > 10 {
		t.Errorf("%d announcements followed a flood", n)
	}
	h.run(2 * settle)
	if s := h.desk.spots[0]; s.State != StateHeld {
		t.Errorf("the other is silent, and the state is %+v", s.Status)
	}
}

func TestAddressIsAnnouncedAnewWhenItsInterfaceComesUp(t *testing.T) {
	h := newHost(t, "10.0.0.100/24@eth0")
	h.hold(1, time.Hour)
	h.run(10 * time.Second)
	h.view.links["eth0"] = link{index: 2, mac: h.view.links["eth0"].mac}
	h.run(time.Second)
	if s := h.desk.spots[0]; s.State != StateFailed || s.Why != "interface eth0 is down" {
		t.Errorf("the state is %+v", s.Status)
	}
	before := h.count(actionAnnounce)
	h.view.links["eth0"] = link{index: 2, up: true, mac: h.view.links["eth0"].mac}
	h.run(100 * time.Millisecond)
	if h.count(actionAnnounce) < before+3 {
		t.Error("it was not announced")
	}
}

func TestAddressThatSomebodyRemovesIsAddedAgain(t *testing.T) {
	h := newHost(t, "fd00::100/64@eth0")
	h.hold(1, time.Hour)
	h.run(time.Second)
	h.view.there = nil
	h.run(0)
	if s := h.desk.spots[0]; !h.has() || s.Restored != 1 {
		t.Errorf("the state is %+v", s.Status)
	}
}

func TestTermsHoldInOrder(t *testing.T) {
	h := newHost(t, "10.0.0.100/24@eth0")
	h.hold(5, time.Minute)
	if h.desk.hold(h.now, 4, h.now.Add(time.Hour)) == nil {
		t.Error("an older term took over")
	}
	h.desk.extend(h.now, 4, h.now.Add(time.Hour))
	h.desk.extend(h.now, 5, h.now.Add(time.Second)) // never back
	if h.desk.deadline != h.now.Add(time.Minute) {
		t.Error("the deadline was moved by another term, or back")
	}
	if h.desk.hold(h.now, 6, h.now) == nil {
		t.Error("a term was taken on whose deadline has passed")
	}
}

func TestAddressesAreCheckedWithWhatToDo(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.100/24@eth0": "", "10.0.0.100/32@eth0.100": "", "fd00::100/64@br-lan": "", "10.0.0.0/31@eth0": "",
		"10.0.0.100@eth0": "without the length of its prefix: write 10.0.0.100/32", "10.0.0.100/24": "write ADDRESS/LENGTH@INTERFACE",
		"10.0.0.0/24@eth0": "the network's or its broadcast address", "10.0.0.255/24@eth0": "the network's or its broadcast address",
		"::ffff:10.0.0.1/120@eth0": "write the IPv4 address 10.0.0.1", "127.0.0.2/8@eth0": "unicast address", "fe80::1/64@eth0": "unicast address",
		"224.0.0.1/24@eth0": "unicast address", "10.0.0.1/0@eth0": "prefix length 0", "10.0.0.1/24@": "name it, such as eth0",
		"10.0.0.1/24@lo": "not announced to anyone", "10.0.0.1/24@eth0/x": "name of an interface", "ten/24@eth0": "cannot read",
		"10.0.0.1/24@averylonginterface": "1 to 15 characters",
	} {
		_, err := ParseAddress(text)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case want != "" && (err == nil || !contains(err.Error(), want)):
			t.Errorf("%s: %v, which does not say %q", text, err, want)
		}
	}
	two := []Address{must(t, "10.0.0.1/24@eth0"), must(t, "10.0.0.2/24@eth0"), must(t, "10.0.0.1/32@eth1")}
	if Duplicate(two) != 2 || Duplicate(two[:2]) != -1 {
		t.Error("the duplicate was not found")
	}
}
