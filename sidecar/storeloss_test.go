package sidecar

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
)

// failsafe makes a world of two hosts that vouch for each other.
func failsafe(t *testing.T) (w *world, p *peers, a, b *host) {
	t.Helper()
	w = newWorld(t)
	p = &peers{world: w, down: map[string]bool{}}
	a = w.add("ctl-a", p.config).start()
	w.wait(5*time.Second, "ctl-a serves", a.is(election.StateServing))
	b = w.add("ctl-b", p.config).start()
	w.wait(5*time.Second, "ctl-b is ready", b.is(election.StateReady))
	w.wait(5*time.Second, "ctl-b is on the list", func() bool { return strings.Contains(w.store.Value("failsafe"), "ctl-b") })
	return w, p, a, b
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

// Only the active is cut off from the store: the passive sees the lease end, and keeps its promise.
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
			t.Error("it is not shown that the active goes on without the store")
		}
		a.client.Heal()
		w.wait(20*time.Second, "one serves with a lease", func() bool { return b.sidecar.Serving() || (a.sidecar.Serving() && !a.sidecar.View().Alone) })
		w.finish()
	})
}

// The passive can't be asked either: the active stops by its deadline, as it can't know what the passive does.
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

// A passive that the holder never learned of, because the store was away, is on no list and must not take over.
func TestFailsafeUnknownPassive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p, a, b := failsafe(t)
		a.client.Partition()
		c := w.add("ctl-c", p.config).start()
		time.Sleep(time.Minute)
		if c.program.starts.Load() != 0 || !w.runs("ctl-a") {
			t.Fatal("an unknown passive took over")
		}
		// Once the holder is gone for good, those on the list may.
		p.mu.Lock()
		p.down["ctl-b"] = true
		p.mu.Unlock()
		w.wait(20*time.Second, "ctl-b serves", b.is(election.StateServing))
		w.finish()
	})
}

// A passive that restarts forgets its promise, and waits out the holder's validity all the same.
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
		p.down["ctl-b"] = true // nobody answers there until it is back, and then it is another
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

	if err := a.Vouch(t.Context(), ask); err != nil || len(got) != 1 || got[0].Term != 7 || got[0].Validity != ask.Validity {
		t.Fatalf("got %+v, %v", got, err)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+AskPath, bytes.NewReader(lastBody))
	req.Header.Set(signatureHeader, lastSignature)
	resp, err := server.Client().Do(req)
	if err != nil || resp.StatusCode != http.StatusConflict || len(got) != 1 {
		t.Errorf("an ask was taken twice: %v, %v", resp, err)
	}
	resp.Body.Close()

	refuse = context.Canceled
	if err := a.Vouch(t.Context(), ask); err == nil || !strings.Contains(err.Error(), "it refused") {
		t.Errorf("a refusal: %v", err)
	}
	refuse = nil
	stranger := &Peers{Cluster: "test", Name: "ctl-a", Secret: []byte("another secret, as long"), Timeout: 5 * time.Second, Client: server.Client()}
	if err := stranger.Vouch(t.Context(), ask); err == nil || len(got) != 2 {
		t.Errorf("a stranger's ask was taken: %v", err)
	}
	elsewhere := &Peers{Cluster: "other", Name: "ctl-a", Secret: b.Secret, Timeout: 5 * time.Second, Client: server.Client()}
	if err := elsewhere.Vouch(t.Context(), ask); err == nil || len(got) != 2 {
		t.Errorf("an ask of another cluster was taken: %v", err)
	}
	ask.Passives = append(ask.Passives, election.Controller{Name: "ctl-c"})
	if err := a.Vouch(t.Context(), ask); err == nil {
		t.Error("a passive that can't be asked was taken to vouch")
	}
	impostor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) }))
	defer impostor.Close()
	ask.Passives = []election.Controller{{Name: "ctl-b", API: impostor.URL}}
	if err := a.Vouch(t.Context(), ask); err == nil {
		t.Error("an impostor's answer was taken")
	}
}
