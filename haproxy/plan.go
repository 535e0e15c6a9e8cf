package haproxy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// desired is the desired state of one backend.
type desired struct {
	known  bool           // false: nothing is known yet; leave everything as it is
	active bool           // a controller serves or is stopping
	server string         // its server, if the set of controllers is known; "" means any slot
	addr   netip.AddrPort // its address; zero: unknown
	accept bool           // its startup port accepted a connection: it may enter rotation
	drain  bool           // it is stopping
	queue  bool           // requests that can't be served now wait
	check  netip.AddrPort // where HAProxy checks the sidecar (CheckActive); zero: nowhere
}

// plan compares the actual state of a backend with the desired state. It returns the commands that
// lead there, in order, and the server of the active. It takes the old server out, and cuts its
// sessions, before it lets the new one in.
func plan(cl Cluster, d desired, have map[string]server) (commands []string, chosen string) {
	if !d.known {
		return nil, ""
	}
	do := func(format string, args ...any) { commands = append(commands, fmt.Sprintf(format, args...)) }
	if d.active {
		chosen = d.server
		if chosen == "" && d.addr.IsValid() {
			chosen = chooseSlot(cl.slots(), d.addr, have)
		}
	}
	out := func(s server) {
		at := cl.Backend + "/" + s.name
		if !s.maint() {
			do("set server %s state maint", at)
			do("shutdown sessions server %s", at)
		} else if s.sessions > 0 {
			do("shutdown sessions server %s", at)
		}
	}
	for _, sl := range cl.slots() {
		if s, ok := have[sl.name]; ok && s.name != chosen {
			out(s)
		}
	}
	s, ok := have[chosen]
	if !ok {
		return commands, chosen
	}
	at := cl.Backend + "/" + chosen
	if d.addr.IsValid() && s.addr != d.addr {
		out(s)
		s.admin |= adminMaint
		do("set server %s addr %s port %d", at, d.addr.Addr(), d.addr.Port())
	}
	if cl.Check == CheckActive {
		switch {
		case d.check.IsValid() && s.checkAddr != d.check:
			do("set server %s check-addr %s port %d", at, d.check.Addr(), d.check.Port())
			fallthrough
		case d.check.IsValid() && !s.checking:
			if !s.checking {
				do("enable health %s", at)
			}
		case !d.check.IsValid() && s.checking && d.addr.IsValid():
			do("disable health %s", at)
		}
	}
	switch {
	case d.drain:
		// A server that is out of rotation stays out. A server in rotation finishes its requests,
		// and gets no new ones if those can wait. If they can't, the old controller is better than
		// none: it is the only one, and it keeps answering until it is told to stop.
		if d.queue && !s.maint() && !s.drain() {
			do("set server %s state drain", at)
		}
	case s.maint() || s.drain():
		if d.accept {
			do("set server %s state ready", at)
		} else if !s.maint() {
			out(s)
		}
	}
	return commands, chosen
}

// chooseSlot picks the server for an address: the one that has it, else one that was never used,
// else the one that has been out of rotation longest.
func chooseSlot(slots []slot, addr netip.AddrPort, have map[string]server) string {
	var fresh, oldest string
	for _, sl := range slots {
		s, ok := have[sl.name]
		switch {
		case ok && s.addr == addr:
			return sl.name
		case !ok || s.addr == nowhere || !s.addr.IsValid():
			if fresh == "" {
				fresh = sl.name
			}
		case s.maint() && (oldest == "" || s.since > have[oldest].since):
			oldest = sl.name
		}
	}
	switch {
	case fresh != "":
		return fresh
	case oldest != "":
		return oldest
	default:
		return slots[0].name
	}
}

// inRotation returns the servers that take new requests or finish old ones, sorted by name.
func inRotation(have map[string]server) []string {
	names := slices.Collect(maps.Keys(have))
	names = slices.DeleteFunc(names, func(n string) bool { return n == holdServer || have[n].maint() })
	slices.Sort(names)
	return names
}
