package haproxy

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// reconcile brings HAProxy to the desired state: look, plan, remember, apply, and look again. It
// returns why it could not.
func (r *run) reconcile() error {
	err := r.settle()
	if err == nil || r.ctx.Err() != nil {
		return nil //nolint:nilerr // ctx has ended, so failures do not matter
	}
	r.blind()
	text := oneLine(err.Error(), 400)
	if r.said["haproxy"] == "" {
		r.note(zerolog.WarnLevel, "haproxy", text, "cannot drive HAProxy; retrying")
	}
	r.update(func(s *Status) { s.HAProxyPID, s.HAProxyError = 0, text })
	return err
}

// settle loops until a look finds nothing left to do.
func (r *run) settle() error {
	var undone error
	for range 4 {
		seen, err := r.look()
		if err != nil {
			return err
		}
		r.seen = seen
		var commands []string
		for _, t := range r.routes {
			have := seen.servers[t.cl.Backend]
			p := t.plan(have, seen.pid)
			t.remember(p, have, seen.pid)
			r.follows(t, p, have)
			commands = append(commands, p.commands...)
		}
		if len(commands) == 0 {
			r.reached()
			r.payDebts()
			r.drainQueues()
			return nil
		}
		answer, err := r.admin.ask(r.ctx, commands...)
		if err != nil {
			return err
		}
		r.owe(commands)
		undone = fmt.Errorf("HAProxy does not do what it is told: %s: %s", strings.Join(commands, "; "), oneLine(answer, 300))
	}
	return undone
}

// look queries the worker. A spawned HAProxy whose socket has had no listener for too long is
// restarted.
func (r *run) look() (look, error) {
	seen, err := r.admin.look(r.ctx)
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
	return seen, err
}

// blind plans without HAProxy: only the file can be corrected.
func (r *run) blind() {
	r.seen = look{}
	for _, t := range r.routes {
		have := map[string]server{}
		for _, sl := range t.cl.slots() {
			a := t.know.Slots[sl.name]
			if !a.IsValid() && len(t.cl.Controllers) == 0 {
				a = nowhere
			}
			have[sl.name] = server{name: sl.name, addr: a, admin: adminMaint}
		}
		t.remember(t.plan(have, 0), have, 0)
	}
}

// planned is what is to be done to one backend.
type planned struct {
	desired  desired
	server   string // that the active has or gets
	commands []string
}

// plan compares the backend with its desired state. pid is the worker's; zero: there is no worker
// to command.
func (t *route) plan(have map[string]server, pid int) planned {
	p := planned{desired: t.desired()}
	p.commands, p.server = plan(t.cl, p.desired, have)
	if t.holder == nil {
		return p
	}
	if s, ok := have[holdServer]; ok {
		p.commands = append(p.commands, t.holder.plan(t.cl.Backend, s)...)
	}
	t.holder.worker(pid)
	return p
}

// remember records what the file should contain.
func (t *route) remember(p planned, have map[string]server, pid int) {
	k, d := &t.know, p.desired
	if t.holder != nil {
		k.Hold = t.holder.addr().String()
	}
	if k.Slots == nil {
		k.Slots = map[string]netip.AddrPort{}
	}
	for _, sl := range t.cl.slots() {
		if s, ok := have[sl.name]; ok && s.addr.IsValid() && s.addr != nowhere {
			k.Slots[sl.name] = s.addr
		}
	}
	in := inRotation(have)
	switch {
	case t.known && d.active && !d.drain && p.server != "":
		k.Server, k.Controller, k.Term, k.URL, k.Check = p.server, t.target.Controller, t.target.Term, t.target.URL, d.check
		if d.addr.IsValid() {
			k.Slots[p.server] = d.addr
		}
	case t.known:
		k.Server, k.Controller, k.Term, k.URL, k.Check = "", "", 0, "", netip.AddrPort{}
	case pid != 0 && len(in) == 1 && in[0] != k.Server && slices.ContainsFunc(t.cl.slots(), func(sl slot) bool { return sl.name == in[0] }):
		// HAProxy's state is newer than the file's.
		k.Server, k.Controller, k.Term, k.URL, k.Check = in[0], "", 0, "", have[in[0]].checkAddr
	}
}

// follows records the outcome of a move, and resolves a name again that may have changed.
func (r *run) follows(t *route, p planned, have map[string]server) {
	d := p.desired
	if len(p.commands) == 0 && d.active && !d.drain && !t.moved && slices.Equal(inRotation(have), []string{p.server}) {
		t.moved = true
		took := time.Since(t.learned)
		r.log.Info().Str("cluster", t.cl.Name).Str("controller", t.target.Controller).Uint64("term", uint64(t.target.Term)).
			Str("server", p.server).Dur("took_ms", took).Msg("in rotation")
		r.update(func(s *Status) {
			s.Moves++
			s.Clusters[t.index].LastMoveMS = election.ToMillis(took)
		})
	}
	s := have[p.server]
	if p.server == "" || !d.active || !d.accept || s.maint() || s.up || s.addr != d.addr {
		return
	}
	if _, err := netip.ParseAddr(t.target.At.Host); err != nil {
		t.accepted = netip.AddrPort{}
		r.probe(t)
	}
}

// reached records that HAProxy is in the desired state.
func (r *run) reached() {
	if r.said["haproxy"] != "" {
		r.note(zerolog.InfoLevel, "haproxy", "", "")
		r.log.Info().Int("pid", r.seen.pid).Msg("HAProxy is in sync")
	}
	r.update(func(s *Status) {
		s.HAProxyPID, s.HAProxyError = r.seen.pid, ""
		for _, t := range r.routes {
			have := r.seen.servers[t.cl.Backend]
			sessions := map[string]int{}
			for n, sv := range have {
				if n != holdServer {
					sessions[n] = sv.sessions
				}
			}
			s.Clusters[t.index].Holding = t.holder != nil && t.holder.holds(r.seen.pid)
			s.Clusters[t.index].InRotation, s.Clusters[t.index].Sessions = inRotation(have), sessions
		}
	})
}

// drainQueues releases requests that wait although the active has room. A request that was queued
// at the moment of a move can be left behind. With "balance first" HAProxy then queues every later
// one behind it: it takes any queue as a sign that all servers are full, unless all connections are
// queued, and the one that occupies the hold server never is. Setting a maxconn makes HAProxy
// process the queue.
func (r *run) drainQueues() {
	for _, t := range r.routes {
		name := t.know.Server
		s, ok := r.seen.servers[t.cl.Backend][name]
		if t.holder == nil || !t.known || !ok || s.maint() || s.drain() || !s.up || r.seen.queued[t.cl.Backend] == 0 {
			continue
		}
		command := fmt.Sprintf("set maxconn server %s/%s %d", t.cl.Backend, name, unlimited)
		if _, err := r.admin.ask(r.ctx, command); err != nil && r.ctx.Err() == nil {
			r.log.Warn().Str("cluster", t.cl.Name).Str("error", oneLine(err.Error(), 200)).Msg("cannot release the held requests")
		}
	}
}

// unlimited is a maxconn that no server reaches.
const unlimited = 1000000
