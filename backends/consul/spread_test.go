package consul

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/tanist/tanist/backends/consul/consultest"
)

// TestLocalAgentFrozenOrDead: with another address to ask, the local agent's death costs no
// renewal, and its freeze none that is hedged.
func TestLocalAgentFrozenOrDead(t *testing.T) {
	c := consultest.Start(t, consultest.Options{Clients: 1})
	config := Config{Cluster: "orders", Address: c.Clients[0].URL(), Log: logger(t)}
	alone, lease, _ := holder(t, config, "ctl-a", 10*time.Minute)
	config.Others = []string{c.Servers[0].URL()}
	s, err := Open(config)
	must(t, err)
	// As a renewal of the default profile has it.
	const attempt = time.Second
	renew := func(s *Store) error {
		ctx, cancel := context.WithTimeout(t.Context(), attempt)
		defer cancel()
		return renewed(ctx, s, lease, true)
	}
	raw, err := c.Client(c.Servers[0])
	must(t, err)
	// write is the control: what a write to the server takes at the same time.
	write := func() time.Duration {
		start := time.Now()
		_, err := raw.KV().Put(&api.KVPair{Key: "control"}, nil)
		must(t, err)
		return time.Since(start)
	}
	following, stop := context.WithCancel(t.Context())
	sightings := s.Follow(following)
	if seen := <-sightings; seen.Err != nil || seen.Active == nil {
		t.Fatalf("%+v", seen)
	}
	for name, fault := range map[string]struct{ begin, end func() error }{
		"frozen": {c.Clients[0].Freeze, c.Clients[0].Thaw},
		"dead":   {c.Clients[0].Kill, func() error { return c.Clients[0].Start() }},
	} {
		must(t, renewed(t.Context(), s, lease, true))
		must(t, fault.begin())
		if renew(alone) == nil {
			t.Errorf("%s: renewed through an agent that does not answer", name)
		}
		failed, slow := 0, 0
		for range 5 {
			answered := make(chan error, 1)
			go func() { answered <- renew(s) }()
			control := write()
			switch err := <-answered; {
			case err != nil && control > attempt/4:
				slow++
				t.Logf("%s: not counted, because a write to the server took %v: %v", name, control, err)
			case err != nil:
				failed++
				t.Logf("%s: %v", name, err)
			}
		}
		if failed > 0 || slow == 5 {
			t.Errorf("%s: %d of 5 renewals failed, and %d more on a machine without time to spare", name, failed, slow)
		}
		if snap, err := s.Read(t.Context()); err != nil || snap.ActiveLease != lease {
			t.Errorf("%s: %+v, %v", name, snap, err)
		}
		must(t, fault.end())
		must(t, c.Wait(t.Context()))
	}
	stop()
	for range sightings {
	}
	s.Close()
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// closing is a body that records when it was closed.
type closing struct {
	io.Reader
	closed *atomic.Int64
}

func (c closing) Close() error { c.closed.Add(1); return nil }

// TestSpread: who is asked when, in fake time. The bubble finds every attempt that is left behind.
func TestSpread(t *testing.T) {
	var refused error = &net.OpError{Op: "dial", Err: errors.New("refused")}
	broken := errors.New("broken")
	const step = 200 * time.Millisecond
	for _, test := range []struct {
		name       string
		repeatable bool
		path       string
		slow       map[string]time.Duration // absent: at once; an hour: never
		fail       map[string]error
		status     map[string]int
		hangs      string // host to which there is no connection
		want       string // host; empty: an error
		after      time.Duration
		asked      string
	}{
		{name: "all well", repeatable: true, want: "a", asked: "a"},
		{name: "hedged", repeatable: true, slow: map[string]time.Duration{"a": time.Hour}, want: "b", after: step, asked: "ab"},
		{name: "hedged twice", repeatable: true, slow: map[string]time.Duration{"a": time.Hour, "b": time.Hour}, want: "c", after: 2 * step, asked: "abc"},
		{name: "the first answers after all", repeatable: true, slow: map[string]time.Duration{"a": 3 * step / 2, "b": time.Hour}, want: "a", after: 3 * step / 2, asked: "ab"},
		{name: "nobody answers", repeatable: true, slow: map[string]time.Duration{"a": time.Hour, "b": time.Hour, "c": time.Hour}, after: 3 * time.Second, asked: "abc"},
		{name: "a write is not hedged", slow: map[string]time.Duration{"a": time.Hour}, after: 3 * time.Second, asked: "a"},
		{name: "a write that was not sent tries the next", fail: map[string]error{"a": refused}, want: "b", asked: "ab"},
		{name: "a write whose connection hangs tries the next", hangs: "a", want: "b", after: step, asked: "ab"},
		{name: "a write that broke does not", fail: map[string]error{"a": broken}, asked: "a"},
		{name: "a read that broke tries the next", repeatable: true, fail: map[string]error{"a": broken}, want: "b", asked: "ab"},
		{name: "an answer of no use", repeatable: true, status: map[string]int{"a": 500}, want: "b", asked: "ab"},
		{name: "a write gets its answer", status: map[string]int{"a": 500}, want: "a", asked: "a"},
		{name: "all refuse", repeatable: true, status: map[string]int{"a": 500, "b": 500, "c": 500}, want: "c", asked: "abc"},
		{name: "a blocking query is patient", repeatable: true, path: "?index=7", slow: map[string]time.Duration{"a": 2 * time.Second}, want: "a", after: 2 * time.Second, asked: "a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked []string
				var mu sync.Mutex
				var opened, closed atomic.Int64
				s := &spread{hosts: []string{"a", "b", "c"}, next: roundTrip(func(r *http.Request) (*http.Response, error) {
					mu.Lock()
					asked = append(asked, r.URL.Host)
					mu.Unlock()
					if body, err := io.ReadAll(r.Body); err != nil || string(body) != "body" {
						t.Errorf("%s was sent %q, %v", r.URL.Host, body, err)
					}
					if test.hangs == r.URL.Host {
						<-r.Context().Done()
						return nil, r.Context().Err()
					}
					if !errors.Is(test.fail[r.URL.Host], refused) {
						httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{})
					}
					select {
					case <-time.After(test.slow[r.URL.Host]):
					case <-r.Context().Done():
						return nil, r.Context().Err()
					}
					if err := test.fail[r.URL.Host]; err != nil {
						return nil, err
					}
					opened.Add(1)
					return &http.Response{
						StatusCode: cmp.Or(test.status[r.URL.Host], 200), Body: closing{strings.NewReader(r.URL.Host), &closed},
					}, nil
				})}
				s.hedge.Endpoints = len(s.hosts)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				if test.repeatable {
					ctx = repeatable(ctx)
				}
				request, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://a/v1/txn"+test.path, bytes.NewReader([]byte("body")))
				must(t, err)
				start := time.Now()
				response, err := s.RoundTrip(request)
				took, got := time.Since(start), ""
				if err == nil {
					b, err := io.ReadAll(response.Body)
					must(t, err)
					response.Body.Close()
					got = string(b)
				}
				synctest.Wait()
				if who := strings.Join(asked, ""); got != test.want || took != test.after || who != test.asked {
					t.Errorf("%q answered (%v) after %v, and %s were asked; want %q after %v, and %s", got, err, took, who, test.want, test.after, test.asked)
				}
				if opened.Load() != closed.Load() {
					t.Errorf("%d of %d replies were closed", closed.Load(), opened.Load())
				}
			})
		})
	}
}
