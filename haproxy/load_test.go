package haproxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// load is an open-loop client: it sends a request every interval, whether or not earlier ones were
// answered, and measures from the time when the request was due.
type load struct {
	url      string
	interval time.Duration
	client   *http.Client

	stop    chan struct{}
	done    sync.WaitGroup
	mu      sync.Mutex
	took    []time.Duration
	failed  []failure
	waiting atomic.Int64
	most    int64
}

type failure struct {
	due, end time.Time
	why      string
}

// startLoad starts a client. Without keep, every request has its own connection: in mode tcp a
// persistent connection belongs to one controller and ends with it.
func startLoad(url string, perSecond int, keep bool) *load {
	l := &load{
		url: url, interval: time.Second / time.Duration(perSecond), stop: make(chan struct{}),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2000, MaxIdleConns: 2000, DisableKeepAlives: !keep}, Timeout: time.Minute},
	}
	l.done.Go(func() {
		due := time.Now()
		for {
			select {
			case <-l.stop:
				return
			case <-time.After(time.Until(due)):
			}
			at := due
			l.done.Go(func() { l.one(at) })
			due = due.Add(l.interval)
		}
	})
	return l
}

func (l *load) one(due time.Time) {
	n := l.waiting.Add(1)
	defer l.waiting.Add(-1)
	why := ""
	resp, err := l.client.Post(l.url, "text/plain", nil) // not idempotent: neither client nor proxy may repeat it
	if err != nil {
		why = err.Error()
	} else {
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			why = err.Error()
		} else if resp.StatusCode != 200 {
			why = resp.Status + " " + oneLine(string(body), 60)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.most = max(l.most, n)
	if why != "" {
		l.failed = append(l.failed, failure{due, time.Now(), why})
		return
	}
	l.took = append(l.took, time.Since(due))
}

func (l *load) end() {
	close(l.stop)
	l.done.Wait()
	l.client.CloseIdleConnections()
}

// plannedMove does what two sidecars do: unpublish, stop, release, acquire, start, publish. It
// returns once the record of the new active is published, with the times of the stop and of the
// start. With drained, the old controller stops only after the proxy has reacted and requests in
// flight are finished; otherwise it stops after a sidecar's usual wait.
func (b *bed) plannedMove(from, to *controller, term election.Term, start time.Duration, drained bool) (stopped, up time.Time) {
	b.store.publish(from.record(term-1, election.StateStopping))
	if drained {
		b.until("the proxy drains", func() bool { s := b.servers()[from.addr]; return s.drain() && s.sessions == 0 })
	} else {
		time.Sleep(25 * time.Millisecond) // run.drain
	}
	stopped = time.Now()
	from.stop()
	from.active.Store(false)
	b.store.vacate()
	b.store.publish(to.record(term, election.StateStarting))
	time.Sleep(start) // what a controller takes to start: the thing that is measured, not a synchronisation
	to.active.Store(true)
	to.start()
	up = time.Now()
	b.store.publish(to.record(term, election.StateServing))
	return stopped, up
}

func TestRequestsWaitDuringAPlannedMove(t *testing.T) {
	for _, tc := range []struct {
		name, mode string
		hold       time.Duration
		drained    bool
	}{
		{"held http", ModeHTTP, 30 * time.Second, true},
		{"held tcp", ModeTCP, 30 * time.Second, true},
		{"held http, the sidecar's pause", ModeHTTP, 30 * time.Second, false},
		{"not held", ModeHTTP, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cs := []*controller{newController(t, "ctl-a"), newController(t, "ctl-b")}
			b := newBed(t, known(cs...))
			b.cfg.Clusters[0].HoldRequests, b.cfg.Clusters[0].Mode = tc.hold, tc.mode
			b.up()
			cs[1].kill()
			cs[0].active.Store(true)
			b.store.publish(cs[0].record(1, election.StateServing))
			b.routedTo(cs[0])
			if tc.hold > 0 {
				b.until("the place is taken", func() bool { return b.proxy.Status().Clusters[0].Holding })
			}
			rate := times(200, 500)
			l := startLoad("http://"+b.front+"/", rate, tc.mode == ModeHTTP)
			var gaps []time.Duration
			var outside []failure
			type span struct{ from, to time.Time }
			var spans []span
			for i := range times(3, 20) {
				stopped, up := b.plannedMove(cs[i%2], cs[(i+1)%2], election.Term(i+2), 300*time.Millisecond, tc.drained)
				n := cs[(i+1)%2].served.Load()
				b.until("the new active serves", func() bool { return cs[(i+1)%2].served.Load() > n })
				gaps = append(gaps, time.Since(up))
				spans = append(spans, span{stopped, time.Now()})
				b.until("it serves for a while", func() bool { return cs[(i+1)%2].served.Load() > n+200 })
			}
			l.end()
			for _, f := range l.failed {
				in := false
				for _, s := range spans {
					in = in || f.end.After(s.from) && f.due.Before(s.to)
				}
				if !in {
					outside = append(outside, f)
				}
			}
			t.Logf("%d moves under %d/s: %d answered, %d failed (%d of them outside a move, stop to first answer), most at once %d; latency %s; serving → answered %s",
				len(spans), rate, len(l.took), len(l.failed), len(outside), l.most, quantiles(l.took), quantiles(gaps))
			if len(outside) > 0 {
				t.Errorf("failed outside a move: %v", outside[0])
			}
			// A busy host may need longer than the sidecar waits.
			if tc.hold > 0 && (tc.drained || long()) && len(l.failed) > 0 {
				t.Errorf("%d requests failed that should have waited: %v", len(l.failed), l.failed[0])
			}
			if tc.hold == 0 && len(l.failed) == 0 {
				t.Error("nothing failed: the test does not see what it is for")
			}
			for _, c := range cs {
				if n := c.wrong.Load(); n > 0 {
					t.Errorf("%s answered %d requests while it was not active", c.name, n)
				}
			}
			if s := b.proxy.Status(); s.Reloads != 0 {
				t.Errorf("%d reloads", s.Reloads)
			}
		})
	}
}

func TestHeldRequestsEndWhenTheHoldDoes(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Clusters[0].HoldRequests = 300 * time.Millisecond })
	b.up()
	b.store.vacate()
	b.until("the place is taken", func() bool { return b.proxy.Status().Clusters[0].Holding })
	for range 3 {
		began := time.Now()
		code, _ := b.get()
		if took := time.Since(began); code != 503 || took < 250*time.Millisecond || took > longEnough/2 {
			t.Errorf("%d after %v; want 503 after 300ms", code, took)
		}
	}
}

func TestHoldSurvivesRestartsOfBoth(t *testing.T) {
	a := newController(t, "ctl-a")
	b := newBed(t, func(c *Config) { c.Clusters[0].HoldRequests = longEnough })
	b.up()
	held := func() {
		t.Helper()
		b.store.vacate()
		b.until("Tanist drives this HAProxy", func() bool {
			v, err := socket{b.cfg.AdminSocket, time.Second}.look(t.Context())
			return err == nil && v.pid == b.proxy.Status().HAProxyPID
		})
		b.until("nobody is in rotation", func() bool { s := b.proxy.Status(); return s.HAProxyPID != 0 && len(s.Clusters[0].InRotation) == 0 })
		b.until("the place is taken", func() bool { return b.proxy.Status().Clusters[0].Holding })
		got := make(chan string, 1)
		go func() { code, body := b.get(); got <- http.StatusText(code) + " " + body }()
		b.until("a request waits", func() bool {
			answer, err := socket{b.cfg.AdminSocket, time.Second}.ask(t.Context(), "show stat -1 2 -1")
			return err == nil && queued(answer) == 1
		})
		b.store.publish(a.record(1, election.StateServing))
		if s := <-got; s != "OK ctl-a" {
			t.Errorf("a held request got %q", s)
		}
	}
	held()
	b.killHAProxy()
	b.startHAProxy()
	held()
	b.stopTanist()
	b.startTanist()
	held()
	// A reload moves the hold to the new worker.
	b.stopTanist()
	b.cfg.Clusters[0].Slots = 4
	b.startTanist()
	b.until("HAProxy was reloaded", func() bool { return b.proxy.Status().Reloads == 1 })
	held()
}

// TestQueueIsHandedOutWhileTheActiveHasRoom: a request that is left in the queue must not wait for
// the end of the hold, nor block those after it.
func TestQueueIsHandedOutWhileTheActiveHasRoom(t *testing.T) {
	a := newController(t, "ctl-a")
	b := newBed(t, func(c *Config) {
		c.Clusters[0].HoldRequests = 50 * time.Second
		c.Reconcile = 500 * time.Millisecond
	})
	b.up()
	b.store.publish(a.record(1, election.StateServing))
	b.routedTo(a)
	// Full at the moment, so that requests queue behind the running one.
	if _, err := (socket{b.cfg.AdminSocket, longEnough}).ask(t.Context(), "set maxconn server orders/c1 1"); err != nil {
		t.Fatal(err)
	}
	stream, err := newStream(b.front)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for range 3 {
		if code, body := b.get(); code != 200 { // gives up before the hold ends
			t.Fatalf("a request was left in the queue: %d %s", code, body)
		}
	}
}

// lateContext is a context whose end is visible before the functions that depend on it run: it
// freezes package context in that order.
type lateContext struct {
	context.Context
	done  chan struct{}
	ended atomic.Bool
}

func (c *lateContext) Done() <-chan struct{} { return c.done }

func (c *lateContext) Err() error {
	if c.ended.Load() {
		return context.Canceled
	}
	return nil
}

// AfterFunc is how package context attaches a function to c.
func (c *lateContext) AfterFunc(func()) func() bool { return func() bool { return true } }

// TestHolderEndsWithItsContext: a holder that relied on functions attached to its context would
// wait forever, and Tanist with it.
func TestHolderEndsWithItsContext(t *testing.T) {
	h, err := newHolder(Cluster{Name: "orders", Mode: ModeHTTP}, "/nonexistent", zerologNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx := &lateContext{Context: t.Context(), done: make(chan struct{})}
	done := make(chan struct{})
	go func() { h.run(ctx); close(done) }()
	if c, err := net.Dial("tcp", h.addr().String()); err != nil { // it runs
		t.Fatal(err)
	} else {
		_, _ = io.WriteString(c, "GET / HTTP/1.1\n")
		_, _ = io.ReadAll(c)
		_ = c.Close()
	}
	ctx.ended.Store(true)
	close(ctx.done)
	select {
	case <-done:
	case <-time.After(longEnough):
		t.Fatal("a holder does not end")
	}
}
