package haproxy

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Source reports the role key of one cluster.
//
// Obligations: the first Sighting comes as soon as anything is known, or at the first failure; the
// channel holds the latest one; the channel is closed when ctx has ended, and not before.
type Source interface {
	Follow(ctx context.Context) <-chan election.Sighting
}

// Proxy keeps HAProxy routed to the active. Make one with [New].
type Proxy struct {
	cfg     Config
	sources map[string]Source
	log     zerolog.Logger

	mu     sync.Mutex
	status Status // returned by Status; all other fields belong to the goroutine of Run
}

// Status is the state of a Proxy at one moment, for people and metrics.
type Status struct {
	HAProxyPID   int             `json:"haproxy_pid"`   // of the worker; 0 while HAProxy is unreachable
	HAProxyError string          `json:"haproxy_error"` // why HAProxy is unreachable or can't be controlled; empty: no error
	ConfigError  string          `json:"config_error"`  // why the configuration is not as desired; empty: no error
	Moves        uint64          `json:"moves"`         // times that a controller entered rotation
	Reloads      uint64          `json:"reloads"`
	Starts       uint64          `json:"starts"` // of a spawned HAProxy
	Clusters     []ClusterStatus `json:"clusters"`
}

// ClusterStatus is one cluster in a [Status].
type ClusterStatus struct {
	Name       string          `json:"name"`
	Controller string          `json:"controller"` // named by the record; empty: none
	Term       election.Term   `json:"term"`       // the highest seen
	State      election.State  `json:"state"`
	URL        string          `json:"url"`
	InRotation []string        `json:"in_rotation"`    // servers, as HAProxy last reported
	LastMoveMS election.Millis `json:"last_move_ms"`   // record received → in rotation, of the last move; negative: none yet
	StoreError string          `json:"store_error"`    // why the store is unreachable; empty: no error
	Refused    string          `json:"refused_record"` // why the latest record is not followed; empty: it is
	Holding    bool            `json:"holding"`        // requests wait during a vacancy (hold_requests)
	Sessions   map[string]int  `json:"sessions"`       // by server, as HAProxy last reported
}

// Ready reports whether HAProxy is reachable and in the desired state, with a controller in
// rotation in every cluster.
func (s Status) Ready() bool {
	for _, c := range s.Clusters {
		if len(c.InRotation) != 1 {
			return false
		}
	}
	return s.HAProxyPID != 0 && s.HAProxyError == "" && s.ConfigError == ""
}

// New checks cfg and returns a Proxy that does nothing until Run. sources has one Source for each
// cluster, by name. The error names every wrong setting.
func New(cfg Config, sources map[string]Source, log zerolog.Logger) (*Proxy, error) {
	cfg, err := cfg.complete()
	if err == nil {
		err = cfg.foreign()
	}
	if err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, sources: sources, log: log}
	for _, cl := range cfg.Clusters {
		if sources[cl.Name] == nil {
			return nil, fmt.Errorf("cannot follow cluster %s: it has no source", cl.Name)
		}
		p.status.Clusters = append(p.status.Clusters, ClusterStatus{Name: cl.Name, LastMoveMS: -1})
	}
	return p, nil
}

// Status returns the current state. It is safe for concurrent use, even before and after Run.
func (p *Proxy) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status
	s.Clusters = slices.Clone(s.Clusters)
	for i := range s.Clusters {
		s.Clusters[i].Sessions = maps.Clone(s.Clusters[i].Sessions)
		s.Clusters[i].InRotation = slices.Clone(s.Clusters[i].InRotation)
	}
	return s
}

// Run follows the sources and controls HAProxy until ctx ends, then returns nil. By then a spawned
// HAProxy has ended; any other keeps running unchanged. Run returns an error at once if there is no
// configuration to run with: the template or its result is invalid and there is no older file of
// ours. Call it once.
func (p *Proxy) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &run{
		Proxy: p, ctx: ctx, inbox: make(chan func()), seed: maphash.MakeSeed(),
		admin:  socket{p.cfg.AdminSocket, time.Second},
		master: socket{p.cfg.MasterSocket, time.Second},
		said:   map[string]string{}, debts: map[string]*debt{},
	}
	defer r.wg.Wait()
	defer cancel(nil)
	for i := range p.cfg.Clusters {
		r.routes = append(r.routes, &route{cl: p.cfg.Clusters[i], index: i, filter: p.cfg.Clusters[i].filter()})
	}
	if err := r.begin(); err != nil {
		return err
	}
	for _, t := range r.routes {
		sightings := p.sources[t.cl.Name].Follow(ctx)
		r.wg.Go(func() {
			for s := range sightings {
				r.post(func() { r.sighting(t, s) })
			}
			if ctx.Err() == nil {
				cancel(fmt.Errorf("cannot follow cluster %s: its source ended", t.cl.Name))
			}
		})
	}
	r.loop()
	r.flush()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// run is one call of Run. Only its goroutine touches the fields; other goroutines post functions to
// the inbox.
type run struct {
	*Proxy
	ctx    context.Context
	wg     sync.WaitGroup
	inbox  chan func()
	seed   maphash.Seed
	admin  socket
	master socket
	routes []*route
	hooks  *election.HookQueue[Change] // nil: there are none
	child  *child                      // nil: HAProxy is not ours
	heard  time.Time                   // when the child was started or last listened

	seen    look // the last look at HAProxy; zero pid: it was unreachable
	backoff time.Duration
	said    map[string]string // last logged text by subject: transitions are logged once

	disk      []byte           // content of the file
	structure string           // of disk
	loaded    string           // structure that HAProxy has loaded, if HAProxy does not report it
	rejected  []byte           // text that HAProxy refused
	debts     map[string]*debt // by backend
	paying    bool

	installing bool
	installAt  time.Time // earliest next attempt after a failure
	installGap time.Duration
}

func (r *run) post(f func()) {
	select {
	case r.inbox <- f:
	case <-r.ctx.Done():
	}
}

func (r *run) loop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case f := <-r.inbox:
			f()
		case <-timer.C:
		}
		if r.cfg.ConfigFile == "" {
			continue
		}
		err := r.reconcile()
		r.install()
		timer.Reset(r.pause(err))
	}
}

// pause returns the time until the next reconcile, after one that returned err.
func (r *run) pause(err error) time.Duration {
	if err != nil {
		r.backoff = min(max(2*r.backoff, 10*time.Millisecond), time.Second)
		return min(r.cfg.Reconcile, r.backoff)
	}
	r.backoff = 0
	soon := len(r.debts) > 0
	for _, t := range r.routes { // did a move leave requests in the queue?
		soon = soon || (t.holder != nil && time.Since(t.learned) < time.Second)
	}
	if soon {
		return min(r.cfg.Reconcile, 20*time.Millisecond)
	}
	return r.cfg.Reconcile
}

// note logs a transition once: the same text for the same subject is not logged again. An empty
// text clears it.
func (r *run) note(level zerolog.Level, subject, text, message string) {
	if r.said[subject] == text {
		return
	}
	r.said[subject] = text
	if text != "" {
		r.log.WithLevel(level).Str("error", text).Msg(message)
	}
}

func (r *run) update(f func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.status)
}

// begin prepares for the sources: the first configuration, the hold listeners, HAProxy itself.
func (r *run) begin() error {
	if len(r.cfg.Hooks) > 0 {
		r.hooks = &election.HookQueue[Change]{Do: func(_ context.Context, c Change) { r.tell(c) }, Merge: merge, Backlog: hookBacklog}
		r.wg.Go(func() { r.hooks.Run(r.ctx) })
	}
	if r.cfg.ConfigFile == "" {
		return nil
	}
	var c *child
	if r.cfg.Spawn {
		c = &child{cfg: r.cfg, log: r.log, again: make(chan struct{}, 1), started: r.started}
		if err := c.prepare(); err != nil {
			return err
		}
	}
	for _, t := range r.routes {
		if t.cl.HoldRequests > 0 {
			h, err := newHolder(t.cl, holdSocket(r.cfg.AdminSocket, t.cl.Backend), r.log.With().Str("cluster", t.cl.Name).Logger())
			if err != nil {
				return errors.Join(err, c.close())
			}
			t.holder = h
			r.wg.Go(func() { h.run(r.ctx) })
		}
	}
	if err := r.firstInstall(); err != nil {
		return errors.Join(err, c.close())
	}
	if c != nil {
		r.child = c
		r.wg.Go(func() { c.run(r.ctx) })
	}
	return nil
}

// started handles a spawned HAProxy that runs. An adopted one runs the configuration that the file
// had.
func (r *run) started(adopted bool) {
	r.post(func() {
		r.backoff, r.heard = 0, time.Now()
		if adopted {
			return
		}
		r.loaded = r.structure
		r.update(func(s *Status) { s.Starts++ })
	})
}
