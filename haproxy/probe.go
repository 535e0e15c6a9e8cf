package haproxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// lookup resolves the host of u; prefer comes first if it is among the results.
func lookup(ctx context.Context, u election.URL, prefer netip.AddrPort) ([]netip.AddrPort, error) {
	if a, err := netip.ParseAddr(u.Host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a.Unmap(), u.Port)}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Host)
	if err != nil {
		return nil, fmt.Errorf("cannot resolve %s: %v", u.Host, err)
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a.Unmap(), u.Port))
	}
	slices.SortStableFunc(out, func(a, b netip.AddrPort) int { return rank(a, prefer) - rank(b, prefer) })
	return out, nil
}

func rank(a, prefer netip.AddrPort) int {
	switch {
	case a == prefer:
		return 0
	case a.Addr().Is4():
		return 1
	default:
		return 2
	}
}

// connect returns the first address of u that accepts a connection.
func connect(ctx context.Context, u election.URL, prefer netip.AddrPort) (netip.AddrPort, error) {
	addrs, err := lookup(ctx, u, prefer)
	if err != nil {
		return netip.AddrPort{}, err
	}
	d := net.Dialer{Timeout: time.Second}
	for _, a := range addrs {
		var c net.Conn
		if c, err = d.DialContext(ctx, "tcp", a.String()); err == nil {
			_ = c.Close()
			return a, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("%s has no address", u.Host)
	}
	return netip.AddrPort{}, fmt.Errorf("cannot connect: %v", err)
}

// resolveAPI resolves the REST interface of a controller's sidecar; zero if it is unreachable from
// here: a loopback address means this host only if the controller is on this host too.
func resolveAPI(ctx context.Context, api election.URL, controller netip.AddrPort) netip.AddrPort {
	if api.Port == 0 {
		return netip.AddrPort{}
	}
	addrs, err := lookup(ctx, api, netip.AddrPort{})
	if err != nil || len(addrs) == 0 || addrs[0].Addr().IsLoopback() && !controller.Addr().IsLoopback() {
		return netip.AddrPort{}
	}
	return addrs[0]
}

// probe dials one startup port repeatedly until it accepts. The zero value dials nothing. It is
// used by the goroutine of Run only.
type probe struct {
	cancel context.CancelFunc // nil: none is running
	id     int                // of the running or the last one
}

func (p *probe) stop() {
	if p.cancel != nil {
		p.cancel()
		p.cancel = nil
	}
}

// probe dials the startup port of t's target until it accepts, in the background. It also resolves
// the names in the record.
func (r *run) probe(t *route) {
	t.probe.stop()
	ctx, cancel := context.WithCancel(r.ctx)
	t.probe = probe{cancel, t.probe.id + 1}
	id, to := t.probe.id, *t.target
	prefer := netip.AddrPort{}
	if s, ok := r.seen.servers[t.cl.Backend][t.know.Server]; ok && !s.maint() {
		prefer = s.addr // of several addresses, the one in use
	}
	// tell posts a result, unless the probe was stopped or replaced meanwhile.
	tell := func(f func()) {
		r.post(func() {
			if ctx.Err() == nil && t.probe.id == id && t.probe.cancel != nil {
				f()
			}
		})
	}
	r.wg.Go(func() {
		at, err := connectSoon(ctx, to.At, prefer, func(err error) { tell(func() { r.refuses(t, err) }) })
		if err != nil {
			return // ctx has ended
		}
		api := resolveAPI(ctx, to.API, at)
		tell(func() { r.accepts(t, at, api) })
	})
}

// connectSoon retries until a connection is accepted or ctx ends. It calls late with the error
// after one second.
func connectSoon(ctx context.Context, u election.URL, prefer netip.AddrPort, late func(error)) (netip.AddrPort, error) {
	pause := 5 * time.Millisecond
	for began := time.Now(); ; {
		at, err := connect(ctx, u, prefer)
		if err == nil {
			return at, nil
		}
		if ctx.Err() == nil && time.Since(began) > time.Second {
			late(err)
		}
		select {
		case <-ctx.Done():
			return at, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 250*time.Millisecond)
	}
}

// refuses records that the startup port does not accept.
func (r *run) refuses(t *route, err error) {
	r.note(zerolog.WarnLevel, "port "+t.cl.Name, oneLine(err.Error(), 200),
		"the startup port of "+t.target.Controller+" does not accept; it is not put into rotation")
}

// accepts records the address at which the startup port accepts, and that of the sidecar's REST
// interface.
func (r *run) accepts(t *route, at, api netip.AddrPort) {
	t.probe.stop()
	t.accepted, t.api = at, api
	r.note(zerolog.InfoLevel, "port "+t.cl.Name, "", "")
	r.hook(t, t.target)
	unchecked := ""
	if t.cl.Check == CheckActive && !api.IsValid() {
		unchecked = "its record names no REST interface that can be reached from here"
	}
	r.note(zerolog.WarnLevel, "api "+t.cl.Name, unchecked,
		"cannot check /active of the sidecar of "+t.target.Controller+"; its controller is in rotation unchecked")
}
