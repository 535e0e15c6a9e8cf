package haproxy

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Source tells what the role key of one cluster says.
//
// Obligations: the first Sighting comes as soon as anything is known, or at the first failure; the latest wins; the
// channel is closed when ctx has ended, and not before.
type Source interface {
	Follow(ctx context.Context) <-chan election.Sighting
}

// Proxy keeps an HAProxy routed to whoever is active. Make one with [New].
type Proxy struct {
	cfg     Config
	sources map[string]Source
	log     zerolog.Logger

	mu     sync.Mutex
	status Status // what Status returns; everything else belongs to the goroutine of Run
}

// Status is what a Proxy knows at one moment, for people and metrics.
type Status struct {
	HAProxyPID   int             `json:"haproxy_pid"`   // of the worker; 0 while HAProxy can't be reached
	HAProxyError string          `json:"haproxy_error"` // why it can't be reached or driven; empty: all is well
	ConfigError  string          `json:"config_error"`  // why the configuration is not what it should be; empty: it is
	Moves        uint64          `json:"moves"`         // times that a controller was put into rotation
	Reloads      uint64          `json:"reloads"`
	Starts       uint64          `json:"starts"` // of a spawned HAProxy
	Clusters     []ClusterStatus `json:"clusters"`
}

// ClusterStatus is one cluster in a [Status].
type ClusterStatus struct {
	Name       string          `json:"name"`
	Controller string          `json:"controller"` // that the record names; empty: nobody
	Term       election.Term   `json:"term"`       // the highest that was seen
	State      election.State  `json:"state"`
	URL        string          `json:"url"`
	InRotation []string        `json:"in_rotation"`    // servers, as HAProxy said last
	LastMoveMS election.Millis `json:"last_move_ms"`   // record learned → in rotation, of the last move; negative: none yet
	StoreError string          `json:"store_error"`    // why the store can't be read; empty: it can
	Refused    string          `json:"refused_record"` // why the latest record is not followed; empty: it is
	Holding    bool            `json:"holding"`        // requests wait while nobody is active (hold_requests)
	Sessions   map[string]int  `json:"sessions"`       // by server, as HAProxy said last
}

// Ready reports whether HAProxy is reachable, is as it should be, and has a controller in rotation in every cluster.
func (s Status) Ready() bool {
	for _, c := range s.Clusters {
		if len(c.InRotation) != 1 {
			return false
		}
	}
	return s.HAProxyPID != 0 && s.HAProxyError == "" && s.ConfigError == ""
}

// New checks cfg and returns a Proxy that does nothing until Run. sources has one Source for each cluster, by its name. The
// error names every setting that is wrong.
func New(cfg Config, sources map[string]Source, log zerolog.Logger) (*Proxy, error) {
	cfg, err := cfg.complete()
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

// Status returns what is known now. It may be called from any goroutine, before and after Run too.
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

// Run follows the sources and drives HAProxy until ctx ends, then returns nil; a spawned HAProxy is gone by then, any
// other goes on as it is. It returns an error at once if there is no configuration to run with: the template or its
// result is bad and there is no older file of ours. Call it once.
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
		r.followers = append(r.followers, &follower{cl: p.cfg.Clusters[i], index: i})
	}
	if err := r.begin(); err != nil {
		return err
	}
	for _, f := range r.followers {
		sightings := p.sources[f.cl.Name].Follow(ctx)
		r.wg.Go(func() {
			for s := range sightings {
				r.post(func() { r.sighting(f, s) })
			}
			if ctx.Err() == nil {
				cancel(fmt.Errorf("cannot follow cluster %s: its source ended", f.cl.Name))
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

// run is one Run. Its fields are touched by the goroutine of Run only; others post functions to the inbox.
type run struct {
	*Proxy
	ctx       context.Context
	wg        sync.WaitGroup
	inbox     chan func()
	seed      maphash.Seed
	admin     socket
	master    socket
	followers []*follower
	hooks     *hookQueue
	child     *child    // nil: HAProxy is not ours
	heard     time.Time // when the child was started, or last listened

	view    view // the last look at HAProxy; zero pid: it could not be reached
	backoff time.Duration
	said    map[string]string // what was logged last, by subject: transitions are logged once

	disk      []byte           // the file as it is
	structure string           // of disk
	loaded    string           // structure that HAProxy has loaded, as far as it doesn't say so itself
	rejected  []byte           // text that HAProxy refused
	debts     map[string]*debt // by backend
	paying    bool

	installing bool
	installAt  time.Time // no sooner than this, after a failure
	installGap time.Duration
}

// follower is one cluster in a run.
type follower struct {
	cl      Cluster
	index   int
	known   bool // a record, or a vacancy, was learned
	term    election.Term
	target  *target // nil: nobody is active
	learned time.Time
	refused uint64 // fingerprint of the record that was refused last
	dropped election.Term
	reason  string // of the record, one line, for people
	know    baked  // what the file is to say
	moved   bool   // the move to target was logged and counted

	probing  context.CancelFunc
	probes   int            // how many there were; the last one counts
	accepted netip.AddrPort // the startup port of target accepted here; zero: not yet
	api      netip.AddrPort // of target's sidecar
	holder   *holder

	serving *target // what the hooks were told last
	last    *target // whoever served last, if nobody does now
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
		wait := r.cfg.Reconcile
		if err := r.reconcile(); err != nil {
			r.backoff = min(max(2*r.backoff, 10*time.Millisecond), time.Second)
			wait = min(wait, r.backoff)
		} else {
			r.backoff = 0
			if len(r.debts) > 0 {
				wait = min(wait, 20*time.Millisecond)
			}
			for _, f := range r.followers { // whether a move left requests in the queue
				if f.holder != nil && time.Since(f.learned) < time.Second {
					wait = min(wait, 20*time.Millisecond)
				}
			}
		}
		r.install()
		timer.Reset(wait)
	}
}

// note logs a transition once: the next time the same is said of the same subject, it is not logged. Empty text clears.
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

// sighting takes in what the store says of one cluster.
func (r *run) sighting(f *follower, s election.Sighting) {
	log := r.log.With().Str("cluster", f.cl.Name).Logger()
	storeErr := ""
	if s.Err != nil {
		storeErr = oneLine(s.Err.Error(), 300)
	}
	subject := "store " + f.cl.Name
	if storeErr == "" && r.said[subject] != "" {
		log.Info().Msg("the store can be read again")
	}
	if r.said[subject] == "" || storeErr == "" { // another wording of the same outage is no news
		r.note(zerolog.WarnLevel, subject, storeErr, "cannot read the role key of cluster "+f.cl.Name+"; traffic stays where it is")
	}
	defer r.update(func(st *Status) {
		c := &st.Clusters[f.index]
		c.StoreError, c.Term = storeErr, f.term
		c.Controller, c.State, c.URL = "", "", ""
		if f.target != nil {
			c.Controller, c.State, c.URL = f.target.controller, f.target.state, f.target.url
		}
	})
	if s.Err != nil {
		return
	}
	if s.Active == nil {
		r.follow(f, nil)
		return
	}
	refuse := func(why error) {
		print := maphash.Bytes(r.seed, s.Active.Encode())
		if print != f.refused {
			f.refused = print
			log.Error().Str("why", oneLine(why.Error(), 300)).Msg("a record in the role key is refused; traffic stays where it is")
		}
		r.update(func(st *Status) { st.Clusters[f.index].Refused = oneLine(why.Error(), 300) })
	}
	t, err := checkRecord(*s.Active, f.cl, r.cfg)
	if err != nil {
		refuse(err)
		return
	}
	if t.term < f.term {
		if f.dropped != t.term {
			f.dropped = t.term
			log.Warn().Uint64("term", uint64(t.term)).Uint64("known", uint64(f.term)).
				Msg("a record of an older term is dropped; if the store was made anew, restart tanist haproxy")
		}
		return
	}
	r.update(func(st *Status) { st.Clusters[f.index].Refused = "" })
	f.term, f.refused, f.dropped, f.reason = t.term, 0, 0, oneLine(s.Active.Reason, 200)
	r.follow(f, &t)
}

// follow makes t what the cluster should be routed to; nil: nobody.
func (r *run) follow(f *follower, t *target) {
	if f.known && (t == nil && f.target == nil || t != nil && f.target != nil && *t == *f.target) {
		return
	}
	same := t != nil && f.target != nil && t.at == f.target.at && t.api == f.target.api && t.term == f.target.term
	f.known, f.target, f.learned, f.moved = true, t, time.Now(), false
	serving := t != nil && t.state == election.StateServing
	if !same || !serving {
		if f.probing != nil {
			f.probing()
			f.probing = nil
		}
		if !same {
			f.accepted, f.api = netip.AddrPort{}, netip.AddrPort{}
		}
	}
	log := r.log.Info().Str("cluster", f.cl.Name)
	if t == nil {
		log.Uint64("term", uint64(f.term)).Msg("nobody is active")
	} else {
		log.Str("controller", t.controller).Uint64("term", uint64(t.term)).Str("state", string(t.state)).Str("url", t.url).
			Msg("the role key says who is active")
	}
	if serving {
		if !f.accepted.IsValid() {
			r.probe(f, *t)
		}
	} else if f.serving != nil {
		r.hook(f, nil)
	}
}

// probe asks the startup port, again and again, until it accepts. It also resolves the names in the record.
func (r *run) probe(f *follower, t target) {
	if f.probing != nil {
		f.probing()
	}
	ctx, cancel := context.WithCancel(r.ctx)
	f.probing = cancel
	f.probes++
	id := f.probes
	current := func() bool { return ctx.Err() == nil && id == f.probes && f.probing != nil } // in the goroutine of Run
	prefer := netip.AddrPort{}
	if s, ok := r.view.servers[f.cl.Backend][f.know.Server]; ok && !s.maint() {
		prefer = s.addr // of several addresses, the one that is in use
	}
	r.wg.Go(func() {
		pause := 5 * time.Millisecond
		for began := time.Now(); ; {
			at, err := connect(ctx, t.at, prefer)
			if err == nil {
				api := resolveAPI(ctx, t.api, at)
				r.post(func() {
					if current() {
						f.probing = nil
						cancel()
						f.accepted, f.api = at, api
						r.note(zerolog.InfoLevel, "port "+f.cl.Name, "", "")
						r.hook(f, f.target)
						if f.cl.Check == CheckActive && !api.IsValid() {
							r.note(zerolog.WarnLevel, "api "+f.cl.Name, "its record names no REST interface that can be reached from here",
								"cannot check /active of the sidecar of "+t.controller+"; its controller is in rotation unchecked")
						} else {
							r.note(zerolog.InfoLevel, "api "+f.cl.Name, "", "")
						}
					}
				})
				return
			}
			if ctx.Err() == nil && time.Since(began) > time.Second {
				r.post(func() {
					if current() {
						r.note(zerolog.WarnLevel, "port "+f.cl.Name, oneLine(err.Error(), 200),
							"the startup port of "+t.controller+" does not accept; it is not put into rotation")
					}
				})
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, 250*time.Millisecond)
		}
	})
}

func (f *follower) desired() desired {
	d := desired{known: f.known}
	if f.target == nil || f.target.state != election.StateServing && f.target.state != election.StateStopping {
		return d
	}
	d.active, d.drain, d.queue = true, f.target.state == election.StateStopping, f.cl.HoldRequests > 0
	if len(f.cl.Controllers) > 0 {
		d.server = serverName(f.target.at)
	}
	d.accept, d.addr, d.check = f.accepted.IsValid(), f.accepted, f.api
	if a, err := netip.ParseAddr(f.target.at.host); err == nil && !d.addr.IsValid() {
		d.addr = netip.AddrPortFrom(a, f.target.at.port)
	}
	return d
}

// reconcile makes HAProxy what it should be, and takes note of what it is.
func (r *run) reconcile() error {
	var err error
	for range 4 { // look, act, look again
		var v view
		v, err = r.admin.view(r.ctx)
		// EAGAIN: the queue of a socket that nobody accepts from is full.
		nobody := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EAGAIN)
		if !nobody {
			r.heard = time.Now()
		} else if r.child != nil && !r.heard.IsZero() && time.Since(r.heard) > deafFor {
			r.heard = time.Time{} // until it is started
			select {
			case r.child.again <- struct{}{}:
			default:
			}
		}
		if err != nil {
			break
		}
		r.view = v
		var commands []string
		for _, f := range r.followers {
			c := r.step(f, v.servers[f.cl.Backend])
			commands = append(commands, c...)
		}
		if len(commands) == 0 {
			r.reached()
			r.payDebts()
			r.drainQueues()
			return nil
		}
		var answer string
		if answer, err = r.admin.ask(r.ctx, commands...); err != nil {
			break
		}
		r.owe(commands)
		err = fmt.Errorf("HAProxy does not do what it is told: %s: %s", strings.Join(commands, "; "), oneLine(answer, 300))
	}
	if r.ctx.Err() != nil {
		return nil //nolint:nilerr // told to end, so nothing that failed matters
	}
	// HAProxy is away: what the file says is all that can be set right.
	r.view = view{}
	for _, f := range r.followers {
		have := map[string]server{}
		for _, sl := range f.cl.slots() {
			a := f.know.Slots[sl.name]
			if !a.IsValid() && len(f.cl.Controllers) == 0 {
				a = nowhere
			}
			have[sl.name] = server{name: sl.name, addr: a, admin: adminMaint}
		}
		r.step(f, have)
	}
	text := oneLine(err.Error(), 400)
	if r.said["haproxy"] == "" {
		r.note(zerolog.WarnLevel, "haproxy", text, "cannot drive HAProxy; trying again")
	}
	r.update(func(s *Status) { s.HAProxyPID, s.HAProxyError = 0, text })
	return err
}

// step plans one cluster and keeps in mind what the file is to say about it.
func (r *run) step(f *follower, have map[string]server) []string {
	d := f.desired()
	commands, chosen := plan(f.cl, d, have)
	if f.holder != nil {
		f.know.Hold = f.holder.addr().String()
		if s, ok := have[holdServer]; ok {
			commands = append(commands, f.holder.plan(f.cl.Backend, s)...)
		}
		f.holder.worker(r.view.pid)
	}
	if f.know.Slots == nil {
		f.know.Slots = map[string]netip.AddrPort{}
	}
	for _, sl := range f.cl.slots() {
		if s, ok := have[sl.name]; ok && s.addr.IsValid() && s.addr != nowhere {
			f.know.Slots[sl.name] = s.addr
		}
	}
	if f.known {
		f.know.Server, f.know.Controller, f.know.Term, f.know.URL, f.know.Check = "", "", 0, "", netip.AddrPort{}
		if d.active && !d.drain && chosen != "" {
			f.know.Server, f.know.Controller, f.know.Term, f.know.URL = chosen, f.target.controller, f.target.term, f.target.url
			f.know.Check = d.check
			if d.addr.IsValid() {
				f.know.Slots[chosen] = d.addr
			}
		}
	}
	in := inRotation(have)
	if !f.known && r.view.pid != 0 {
		// What HAProxy does is newer than what the file said.
		if len(in) == 1 && in[0] != f.know.Server && slices.ContainsFunc(f.cl.slots(), func(sl slot) bool { return sl.name == in[0] }) {
			f.know.Server, f.know.Controller, f.know.Term, f.know.URL, f.know.Check = in[0], "", 0, "", have[in[0]].checkAddr
		}
	}
	if r.view.pid != 0 && len(commands) == 0 && d.active && !d.drain && slices.Equal(in, []string{chosen}) && !f.moved {
		f.moved = true
		took := time.Since(f.learned)
		r.log.Info().Str("cluster", f.cl.Name).Str("controller", f.target.controller).Uint64("term", uint64(f.target.term)).
			Str("server", chosen).Dur("took_ms", took).Msg("in rotation")
		r.update(func(s *Status) {
			s.Moves++
			s.Clusters[f.index].LastMoveMS = election.ToMillis(took)
		})
	}
	// A name may lead elsewhere by now.
	if s := have[chosen]; chosen != "" && r.view.pid != 0 && d.active && d.accept && !s.maint() && !s.up && s.addr == d.addr {
		if _, err := netip.ParseAddr(f.target.at.host); err != nil {
			f.accepted = netip.AddrPort{}
			r.probe(f, *f.target)
		}
	}
	return commands
}

// reached notes that HAProxy is as it should be.
func (r *run) reached() {
	if r.said["haproxy"] != "" {
		r.note(zerolog.InfoLevel, "haproxy", "", "")
		r.log.Info().Int("pid", r.view.pid).Msg("HAProxy is as it should be")
	}
	r.update(func(s *Status) {
		s.HAProxyPID, s.HAProxyError = r.view.pid, ""
		for _, f := range r.followers {
			have := r.view.servers[f.cl.Backend]
			sessions := map[string]int{}
			for n, sv := range have {
				if n != holdServer {
					sessions[n] = sv.sessions
				}
			}
			s.Clusters[f.index].Holding = f.holder != nil && f.holder.holds(r.view.pid)
			s.Clusters[f.index].InRotation, s.Clusters[f.index].Sessions = inRotation(have), sessions
		}
	})
}

// debt is a cut that is still owed in workers that only finish what they had before a reload. The master can't be asked
// while it executes itself anew, so one attempt is not enough.
type debt struct {
	since  time.Time
	spared map[int]bool // workers that were current at the cut or after it: their sessions were cut directly, or are newer
}

// A debt is given up after this; by then the built-in template's hard-stop-after has ended the old workers.
const debtLife = 5 * time.Minute

// owe notes that backends lost their active by these commands.
func (r *run) owe(commands []string) {
	if r.master.path == "" {
		return
	}
	for _, c := range commands {
		if at, ok := strings.CutPrefix(c, "shutdown sessions server "); ok {
			backend, _, _ := strings.Cut(at, "/")
			r.debts[backend] = &debt{time.Now(), map[int]bool{}}
		}
	}
}

// payDebts cuts what is owed, beside everything else: the new active does not wait for it.
func (r *run) payDebts() {
	for backend, d := range r.debts {
		d.spared[r.view.pid] = true
		if time.Since(d.since) > debtLife {
			delete(r.debts, backend)
		}
	}
	if len(r.debts) == 0 || r.paying {
		return
	}
	r.paying = true
	owed := map[string]*debt{}
	spared := map[string]map[int]bool{}
	oldest := time.Now()
	for backend, d := range r.debts {
		owed[backend], spared[backend] = d, maps.Clone(d.spared)
		if d.since.Before(oldest) {
			oldest = d.since
		}
	}
	r.wg.Go(func() {
		ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
		defer cancel()
		left, err := r.master.cutOldWorkers(ctx, spared)
		r.post(func() {
			r.paying = false
			if err == nil && left == 0 {
				for backend, d := range owed {
					if r.debts[backend] == d { // else it is owed anew
						delete(r.debts, backend)
					}
				}
				r.note(zerolog.WarnLevel, "old workers", "", "")
				return
			}
			if err == nil {
				err = fmt.Errorf("%d sessions are still there", left)
			}
			if time.Since(oldest) > 5*time.Second && r.said["old workers"] == "" {
				r.note(zerolog.WarnLevel, "old workers", oneLine(err.Error(), 200), "cannot cut sessions in old workers of HAProxy; trying on")
			}
		})
	})
}

// drainQueues hands out requests that wait although the active has room. One that came to the queue at the moment of a move
// can be left there, and with "balance first" HAProxy then queues every later one behind it: it takes any queue for a
// sign that all servers are full, unless all connections are queued, and the one that holds the place never is.
// Setting a maxconn makes HAProxy look at the queue.
func (r *run) drainQueues() {
	for _, f := range r.followers {
		name := f.know.Server
		s, ok := r.view.servers[f.cl.Backend][name]
		if f.holder == nil || !f.known || !ok || s.maint() || s.drain() || !s.up || r.view.queued[f.cl.Backend] == 0 {
			continue
		}
		command := fmt.Sprintf("set maxconn server %s/%s %d", f.cl.Backend, name, unlimited)
		if _, err := r.admin.ask(r.ctx, command); err != nil && r.ctx.Err() == nil {
			r.log.Warn().Str("cluster", f.cl.Name).Str("error", oneLine(err.Error(), 200)).Msg("cannot hand out the requests that wait")
		}
	}
}

// unlimited is a maxconn that no server reaches.
const unlimited = 1000000

// begin does what comes before the sources are followed: the first configuration, the hold listeners, HAProxy itself.
func (r *run) begin() error {
	if len(r.cfg.Hooks) > 0 {
		r.hooks = newHookQueue(r.cfg.Hooks, r.log)
		r.wg.Go(func() { r.hooks.run(r.ctx) })
	}
	if r.cfg.ConfigFile == "" {
		return nil
	}
	for _, f := range r.followers {
		if f.cl.HoldRequests > 0 {
			h, err := newHolder(f.cl, holdSocket(r.cfg.AdminSocket, f.cl.Backend), r.log)
			if err != nil {
				return err
			}
			f.holder = h
			r.wg.Go(func() { h.run(r.ctx) })
		}
	}
	if err := r.firstInstall(); err != nil {
		return err
	}
	if r.cfg.Spawn {
		c := &child{cfg: r.cfg, log: r.log, again: make(chan struct{}, 1), started: func() {
			r.post(func() {
				r.backoff, r.loaded, r.heard = 0, r.structure, time.Now()
				r.update(func(s *Status) { s.Starts++ })
			})
		}}
		if err := c.prepare(); err != nil {
			return err
		}
		r.child = c
		r.wg.Go(func() { c.run(r.ctx) })
	}
	return nil
}
