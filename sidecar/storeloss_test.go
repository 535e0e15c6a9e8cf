package sidecar

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// failsafe makes a world of two hosts that ask each other for promises.
func failsafe(t *testing.T) (w *world, p *peers, a, b *host) {
	t.Helper()
	w = newWorld(t)
	p = &peers{world: w, down: map[string]bool{}}
	a = w.add("ctl-a", p.config).start()
	w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
	b = w.add("ctl-b", p.config).start()
	w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
	w.wait(5*time.Second, "ctl-b is on the list", func() bool { return w.listed("ctl-b") })
	return w, p, a, b
}

// listed reports whether a controller is on the holder's list of who may take over.
func (w *world) listed(name string) bool {
	b, err := election.DecodeBreadcrumb([]byte(w.store.Value("term")))
	return err == nil && slices.Contains(strings.Split(b.Heirs, ","), name)
}

func TestWholeStoreAway(t *testing.T) {
	for _, policy := range []election.StoreLoss{election.StoreLossStop, election.StoreLossFailsafe, election.StoreLossKeep} {
		t.Run(string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				p := &peers{world: w, down: map[string]bool{}}
				as := func(c *Config) { p.config(c); c.OnStoreLoss = policy }
				a := w.add("ctl-a", as).start()
				w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
				b := w.add("ctl-b", as).start()
				w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
				time.Sleep(2 * time.Second)
				w.store.Down()
				served := true
				for range 6000 {
					time.Sleep(10 * time.Millisecond)
					served = served && a.sidecar.Serving() && w.runs("ctl-a")
				}
				if want := policy != election.StoreLossStop; served != want {
					t.Errorf("served all the time: %v", served)
				}
				if w.runs("ctl-b") {
					t.Error("ctl-b runs without the store")
				}
				w.store.Up()
				w.wait(20*time.Second, "one serves", func() bool { return a.sidecar.Serving() || b.sidecar.Serving() })
				w.finish()
			})
		})
	}
}

// TestFailsafeActiveCutOff: only the active is cut off from the store. The passive sees the lease
// end, and keeps its promise.
func TestFailsafeActiveCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, a, b := failsafe(t)
		a.client.Partition()
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			if !w.runs("ctl-a") || w.runs("ctl-b") {
				t.Fatal("the passive did not keep its promise")
			}
		}
		if !a.sidecar.View().Alone {
			t.Error("the view does not show that the active continues without the store")
		}
		a.client.Heal()
		w.wait(20*time.Second, "one serves with a lease", func() bool { return b.sidecar.Serving() || (a.sidecar.Serving() && !a.sidecar.View().Alone) })
		w.finish()
	})
}

// TestFailsafePassiveAwayToo: the passive does not answer either. The active stops by its deadline,
// because it cannot know what the passive does.
func TestFailsafePassiveAwayToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p, a, b := failsafe(t)
		p.mu.Lock()
		p.down["ctl-b"] = true
		p.mu.Unlock()
		a.client.Partition()
		w.wait(4*time.Second, "ctl-a has stopped", func() bool { return !w.runs("ctl-a") })
		w.wait(20*time.Second, "ctl-b serves", b.is(election.StateServing))
		w.finish()
	})
}

// TestFailsafeUnknownPassive: a passive that the holder never saw, because the store was away, is
// on no list and must not take over.
func TestFailsafeUnknownPassive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p, a, b := failsafe(t)
		a.client.Partition()
		c := w.add("ctl-c", p.config).start()
		time.Sleep(time.Minute)
		if c.program.starts.Load() != 0 || !w.runs("ctl-a") {
			t.Fatal("a passive unknown to the holder took over")
		}
		// Once the holder is gone for good, those on the list may take over.
		p.mu.Lock()
		p.down["ctl-b"] = true
		p.mu.Unlock()
		w.wait(20*time.Second, "ctl-b serves", b.is(election.StateServing))
		w.finish()
	})
}

// TestFailsafeUnlistedPassiveStaysOutWhateverBecomesOfTheRecords: a passive that the holder could
// not list does not take over, whatever becomes of the records in the store meanwhile.
func TestFailsafeUnlistedPassiveStaysOutWhateverBecomesOfTheRecords(t *testing.T) {
	for name, spoil := range map[string]func(w *world){
		"kept":       func(*world) {},
		"deleted":    func(w *world) { w.store.Remove("term") },
		"unreadable": func(w *world) { w.store.Overwrite("term", "{") },
		"by hand":    func(w *world) { w.store.Overwrite("term", "1") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, p, a, b := failsafe(t)
				a.client.DenyKey("term")
				c := w.site("ctl-c")
				c.boot(p.config)
				w.wait(time.Second, "ctl-c is ready", c.now.is(election.StateReady))
				time.Sleep(5 * time.Second)
				a.client.Partition()
				spoil(w)
				time.Sleep(20 * time.Second)
				c.now.kill() // what it has seen outlives the process
				c.boot(p.config)
				time.Sleep(time.Minute)
				if c.program.starts.Load() != 0 || !w.runs("ctl-a") {
					t.Error("a passive that is not listed took over")
				}
				p.mu.Lock()
				p.down["ctl-b"] = true
				p.mu.Unlock()
				w.wait(30*time.Second, "ctl-b serves", b.is(election.StateServing))
				c.now.kill()
				w.finish()
			})
		})
	}
}

// TestFailsafeClaimOfOneThatIsStruckOffMeanwhile: the holder removes a passive from its list while
// the claim of that passive is under way. Then it is cut off and continues alone.
func TestFailsafeClaimOfOneThatIsStruckOffMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := &peers{world: w, down: map[string]bool{}}
		a, b := w.add("ctl-a", p.config), w.add("ctl-b", p.config)
		a.start()
		w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
		a.sidecar.elector.Backend = cutOffByItsList{a.client, a}
		b.sidecar.elector.Backend = slowToClaim{b.client}
		b.program.startsIn = 0
		b.start()
		w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
		w.wait(5*time.Second, "ctl-b is on the list", func() bool { return w.listed("ctl-b") })
		before := a.client.Calls("Hold")
		w.wait(5*time.Second, "a renewal", func() bool { return a.client.Calls("Hold") > before })
		w.store.Remove("controllers/ctl-b") // its presence has expired
		time.Sleep(10 * time.Millisecond)
		w.drop(func(w *world, lease election.LeaseID) { w.store.RevokeEarly(lease) }, a)
		time.Sleep(20 * time.Second)
		if !w.runs("ctl-a") || w.runs("ctl-b") {
			t.Error("a passive that was removed from the list took over")
		}
		a.client.Heal()
		w.wait(20*time.Second, "ctl-a has the role key", func() bool { return !a.sidecar.View().Alone })
		w.finish()
	})
}

// cutOffByItsList is the store as used by a host whose write of a list without ctl-b takes a
// moment, and is the last to get through.
type cutOffByItsList struct {
	*electiontest.Client
	host *host
}

func (c cutOffByItsList) Put(ctx context.Context, p election.Put) error {
	if p.Key != "term" || strings.Contains(string(p.Value), "ctl-b") {
		return c.Client.Put(ctx, p)
	}
	time.Sleep(300 * time.Millisecond)
	err := c.Client.Put(ctx, p)
	c.Partition()
	return err
}

// slowToClaim is the store as used by a host whose claims take their time.
type slowToClaim struct{ *electiontest.Client }

func (c slowToClaim) Claim(ctx context.Context, claim election.Claim) error {
	time.Sleep(400 * time.Millisecond)
	return c.Client.Claim(ctx, claim)
}

// TestFailsafePassiveRestarts: a passive that restarts forgets its promise, and still waits out the
// holder's validity.
func TestFailsafePassiveRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p, a, b := failsafe(t)
		a.client.Partition()
		time.Sleep(20 * time.Second)
		if err := b.stop(); err != nil {
			t.Error(err)
		}
		b.end = nil
		p.mu.Lock()
		p.down["ctl-b"] = true // nobody answers there until it is back, as a new process
		p.mu.Unlock()
		b2 := w.add("ctl-b", p.config).start()
		w.wait(30*time.Second, "the new ctl-b serves", b2.is(election.StateServing))
		w.finish()
	})
}

func TestPeers(t *testing.T) {
	ask := election.Ask{Controller: "ctl-a", Incarnation: "a-1", Term: 7, Validity: 4 * time.Second}
	var got []election.Ask
	var refuse error
	b := &Peers{Cluster: "test", Name: "ctl-b", Secret: []byte("0123456789abcdef")}
	var lastBody []byte
	var lastSignature string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		lastBody, lastSignature = body, r.Header.Get(signatureHeader)
		r.Body = io.NopCloser(bytes.NewReader(body))
		b.Handler(func(a election.Ask) error { got = append(got, a); return refuse }).ServeHTTP(w, r)
	}))
	defer server.Close()
	ask.Passives = []election.Controller{{Name: "ctl-b", API: server.URL}}
	a := &Peers{Cluster: "test", Name: "ctl-a", Secret: b.Secret, Timeout: 5 * time.Second, Client: server.Client()}

	if err := a.Ask(t.Context(), ask); err != nil || len(got) != 1 || got[0].Term != 7 || got[0].Validity != ask.Validity {
		t.Fatalf("got %+v, %v", got, err)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+AskPath, bytes.NewReader(lastBody))
	req.Header.Set(signatureHeader, lastSignature)
	resp, err := server.Client().Do(req)
	if err != nil || resp.StatusCode != http.StatusConflict || len(got) != 1 {
		t.Errorf("an ask was accepted twice: %v, %v", resp, err)
	}
	resp.Body.Close()

	refuse = context.Canceled
	if err := a.Ask(t.Context(), ask); err == nil || !strings.Contains(err.Error(), "it refused") {
		t.Errorf("a refusal: %v", err)
	}
	refuse = nil
	stranger := &Peers{Cluster: "test", Name: "ctl-a", Secret: []byte("another secret, as long"), Timeout: 5 * time.Second, Client: server.Client()}
	if err := stranger.Ask(t.Context(), ask); err == nil || len(got) != 2 {
		t.Errorf("a stranger's ask was accepted: %v", err)
	}
	elsewhere := &Peers{Cluster: "other", Name: "ctl-a", Secret: b.Secret, Timeout: 5 * time.Second, Client: server.Client()}
	if err := elsewhere.Ask(t.Context(), ask); err == nil || len(got) != 2 {
		t.Errorf("an ask of another cluster was accepted: %v", err)
	}
	ask.Passives = append(ask.Passives, election.Controller{Name: "ctl-c"})
	if err := a.Ask(t.Context(), ask); err == nil {
		t.Error("a passive that does not answer counted as a promise")
	}
	impostor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) }))
	defer impostor.Close()
	ask.Passives = []election.Controller{{Name: "ctl-b", API: impostor.URL}}
	if err := a.Ask(t.Context(), ask); err == nil {
		t.Error("an impostor's answer was accepted")
	}
}

// TestAskersAreRememberedUpToABound: however many processes have asked, only a few are remembered,
// and the last ask cannot be repeated.
func TestAskersAreRememberedUpToABound(t *testing.T) {
	var p Peers
	for n := range 1000 {
		m := askMessage{Ask: election.Ask{Incarnation: fmt.Sprint(n)}, Sequence: 5}
		if !p.fresh(m) || p.fresh(m) {
			t.Fatalf("asker %d", n)
		}
	}
	if len(p.last) > askersKept {
		t.Errorf("%d askers are remembered", len(p.last))
	}
	if p.fresh(askMessage{Ask: election.Ask{Incarnation: "999"}, Sequence: 5}) || p.fresh(askMessage{Ask: election.Ask{Incarnation: "980"}, Sequence: 4}) {
		t.Error("a repeated ask was accepted")
	}
}

// TestRebindWithALostReplyBringsTheURLBack: the role key is bound to a new lease, and the reply to
// that is lost, so the holder does not know. Found by the simulator, seed 307: the URL stayed absent.
func TestRebindWithALostReplyBringsTheURLBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, a, _ := failsafe(t)
		before := w.store.Value(election.URLKey)
		a.client.Partition()
		time.Sleep(10 * time.Second)
		if w.store.Value(election.ActiveKey) != "" || before == "" {
			t.Fatalf("the role key is still there, or there was no URL: %q", before)
		}
		a.client.LoseReplies(1, "Claim")
		a.client.Heal()
		w.wait(20*time.Second, "the role key is bound to a new lease", func() bool { return w.store.Value(election.ActiveKey) != "" })
		time.Sleep(5 * time.Second)
		if is := w.store.Value(election.URLKey); is != before {
			t.Errorf("the URL is %q, and was %q", is, before)
		}
		w.finish()
	})
}
