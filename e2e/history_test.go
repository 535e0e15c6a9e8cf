package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tanist/tanist/election"
)

// witness asks the controllers of a court at fixed times who they are, whether or not earlier
// requests were answered. It knows nothing of sidecars and store.
type witness struct {
	mu    sync.Mutex
	seen  []seenAnswer
	stall time.Duration // how late a request was sent at most: this host was that busy
}

// seenAnswer is one good response.
type seenAnswer struct {
	sent, got election.Instant
	pid       int
	term      election.Term
}

const (
	witnessEvery = 10 * time.Millisecond
	// witnessMay is how far the history may be from what the witness saw.
	witnessMay = 100 * time.Millisecond
)

// run asks until ctx ends.
func (w *witness) run(ctx context.Context, addresses []string) {
	client := &http.Client{Timeout: 300 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(witnessEvery)
	defer tick.Stop()
	var asking sync.WaitGroup
	defer asking.Wait()
	last := election.BootClock()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := election.BootClock()
		w.mu.Lock()
		w.stall = max(w.stall, now.Sub(last)-witnessEvery)
		w.mu.Unlock()
		last = now
		for _, address := range addresses {
			asking.Go(func() { w.ask(ctx, client, address) })
		}
	}
}

func (w *witness) ask(ctx context.Context, client *http.Client, address string) {
	a := seenAnswer{sent: election.BootClock()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", http.NoBody)
	if err != nil {
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return
	}
	if _, err := fmt.Sscan(string(text), &a.pid, &a.term); err != nil {
		return
	}
	a.got = election.BootClock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, a)
}

// outage is what the witness saw between two processes of controllers: nobody answered for at least
// least and at most most.
type outage struct {
	term        election.Term
	inPlace     bool
	least, most time.Duration
}

// outages returns them in order.
func (w *witness) outages() []outage {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.SortedFunc(slices.Values(w.seen), func(a, b seenAnswer) int { return cmp.Compare(a.got, b.got) })
	var found []outage
	for i := 1; i < len(all); i++ {
		before, after := all[i-1], all[i]
		if before.pid == after.pid || after.term < before.term {
			continue
		}
		found = append(found, outage{after.term, before.term == after.term, max(0, after.sent.Sub(before.got)), after.got.Sub(before.sent)})
	}
	return found
}

// TestHistoryAgreesWithAnIndependentWitness: every outage of the history is what somebody saw who
// asked the controllers all the time, or is marked as a bound, which holds; and its parts are no more
// than it. TANIST_LONG inflicts 60 faults.
func TestHistoryAgreesWithAnIndependentWitness(t *testing.T) {
	faults, profiles := 8, []string{"fast"}
	if os.Getenv("TANIST_LONG") != "" {
		faults, profiles = 30, []string{"fast", "default"}
	}
	seed, err := strconv.ParseUint(os.Getenv("E2E_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	for _, profile := range profiles {
		t.Run(profile, func(t *testing.T) {
			t.Logf("seed %d", seed)
			c := &chaos{court: newCourt(t, "ctl-a", "ctl-b"), Rand: rand.New(rand.NewPCG(seed, 1)), tanist: program(t, "tanist")}
			var addresses []string
			for _, s := range c.seats {
				s.lease = "{profile: " + profile + "}"
				s.more = fmt.Sprintf("health: {interval: 1s, timeout: 500ms, fall: 2, checks: [{name: http, http: \"http://%s/\"}]}\n", s.listen)
				addresses = append(addresses, s.listen)
				c.start(s, c.tanist)
			}
			c.settle()
			w := &witness{}
			ctx, stop := context.WithCancel(t.Context())
			var asking sync.WaitGroup
			asking.Go(func() { w.run(ctx, addresses) })
			defer asking.Wait()
			defer stop()
			order := c.Perm(len(witnessed()))
			for i := range faults {
				c.inflict(witnessed()[order[i%len(order)]])
			}
			stop()
			asking.Wait()
			compare(t, c.history(), w)
		})
	}
}

// witnessed are the faults whose outages are compared.
func witnessed() []string {
	return []string{
		"controller killed", "controller frozen", "planned move", "sidecar told to end", "host dies", "sidecar frozen", "role key removed", "restart in place",
		"store frozen", "everything dies",
	}
}

// inflict makes one fault, and waits until all is well again.
func (c *chaos) inflict(fault string) {
	c.Helper()
	a := c.serves(c.seats...)
	other := c.seats[0]
	if other == a {
		other = c.seats[1]
	}
	pid, _ := c.last(a)
	c.Logf("%s %s: %s", time.Now().Format("05.000"), a.name, fault)
	switch fault {
	case "controller killed":
		_ = syscall.Kill(pid, syscall.SIGKILL)
	case "controller frozen":
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	case "planned move":
		c.move(other.name)
	case "sidecar told to end":
		c.again(a, syscall.SIGTERM)
	case "host dies":
		c.dies(a)
		c.start(a, c.tanist)
	case "sidecar frozen":
		c.send(a, syscall.SIGSTOP)
		c.serves(other)
		c.send(a, syscall.SIGCONT)
	case "role key removed":
		c.try(clientv3.OpDelete(c.key(election.ActiveKey)))
	case "restart in place":
		got := c.try(clientv3.OpGet(c.key(election.ActiveKey))).Get()
		if active, err := election.DecodeActive(got.Kvs[0].Value); err == nil {
			r := election.Request{ID: strconv.Itoa(c.n), Op: election.OpRestart, To: a.name, By: "ana", Term: active.Term, For: time.Minute}
			c.try(clientv3.OpPut(c.key(election.RequestKey), string(r.Encode())))
		}
	case "store frozen":
		c.freezeStore(true)
		time.Sleep(8 * time.Second)
		c.freezeStore(false)
	case "everything dies":
		c.dies(a)
		c.dies(other)
		time.Sleep(time.Second)
		c.start(a, c.tanist)
		c.start(other, c.tanist)
	}
	c.n++
	c.until("another process of the controller runs", func(*election.Active, map[string]election.State) bool {
		for _, s := range c.seats {
			if _, err := os.Stat(s.dir + "/stamps"); err != nil {
				continue // it has never run
			}
			if now, ago := c.last(s); now != pid && ago < 100*time.Millisecond {
				return true
			}
		}
		return false
	})
	c.settle()
}

// dies kills a sidecar, its guard and its controller at once.
func (c *chaos) dies(s *seat) {
	c.Helper()
	pid, guard := 0, 0
	if _, err := os.Stat(s.dir + "/stamps"); err == nil {
		if now, ago := c.last(s); ago < 100*time.Millisecond {
			pid, guard = now, parent(c.T, now)
		}
	}
	c.send(s, syscall.SIGKILL)
	if pid != 0 {
		_ = syscall.Kill(guard, syscall.SIGKILL)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-s.sidecar.Ended()
}

// settle waits until one serves and the other is ready, for a moment.
func (c *chaos) settle() {
	c.Helper()
	c.until("one serves and the other is ready", func(active *election.Active, state map[string]election.State) bool {
		return active.Serving() && slices.ContainsFunc(c.seats, func(s *seat) bool { return s.name != active.Controller && state[s.name] == election.StateReady })
	})
	time.Sleep(time.Duration(500+c.IntN(1000)) * time.Millisecond) // faults hit any moment of a check's interval
}

// history returns what `tanist history` shows, by term.
func (c *chaos) history() map[election.Term]election.History {
	c.Helper()
	code, out, msg := tanist(c.T, "history", "-o", "json", "-n", "1000", "-C", "e2e", "--endpoints", c.store.client)
	var all []election.History
	if err := json.Unmarshal([]byte(out), &all); err != nil || code != 0 {
		c.Fatalf("%d %v %s", code, err, msg)
	}
	by := map[election.Term]election.History{}
	for _, h := range all {
		by[h.Term] = h
	}
	return by
}

// compare judges the history.
func compare(t *testing.T, history map[election.Term]election.History, w *witness) {
	t.Helper()
	may := witnessMay + witnessEvery + w.stall
	restarts := map[election.Term]int{}
	for _, o := range w.outages() {
		h, ok := history[o.term]
		if !ok {
			t.Errorf("term %d is not in the history", o.term)
			continue
		}
		said, atMost, atLeast, why := h.Outage, h.OutageAtMost, h.OutageAtLeast, h.Reason
		if o.inPlace {
			n := restarts[o.term]
			restarts[o.term]++
			if n >= len(h.Restarts) {
				t.Errorf("term %d: a restart that took %v is not in the history", o.term, o.most)
				continue
			}
			r := h.Restarts[n]
			said, atMost, atLeast, why = r.Outage, r.AtMost, false, r.Why
		}
		is := time.Duration(float64(said) * float64(time.Millisecond))
		mark := "="
		switch {
		case atMost:
			mark = "≤"
		case atLeast:
			mark = "≥"
		}
		t.Logf("term %d: the history says %s %v, the witness saw %v to %v: %s", o.term, mark, is.Round(time.Millisecond), o.least.Round(time.Millisecond), o.most.Round(time.Millisecond), why)
		if !atLeast && is < o.least-may || !atMost && is > o.most+may {
			t.Errorf("term %d: the history says %s %v, and the witness saw %v to %v (may differ by %v): %s", o.term, mark, is, o.least, o.most, may, why)
		}
		if parts := partsOf(h, history[o.term-1]); !o.inPlace && !atLeast && parts > is+may {
			t.Errorf("term %d: the parts are %v, more than the outage of %v", o.term, parts, is)
		}
	}
}

// partsOf returns the sum of the parts of an outage.
func partsOf(h, before election.History) time.Duration {
	sum := h.Wait + h.Fence + h.Start
	if !strings.HasPrefix(before.EndedBy, "detached") {
		sum += before.EndDetect + before.EndStop
	}
	return time.Duration(float64(sum) * float64(time.Millisecond))
}
