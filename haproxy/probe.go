package haproxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// lookup resolves the host of e; prefer comes first if it is among the results.
func lookup(ctx context.Context, e endpoint, prefer netip.AddrPort) ([]netip.AddrPort, error) {
	if a, err := netip.ParseAddr(e.host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a.Unmap(), e.port)}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", e.host)
	if err != nil {
		return nil, fmt.Errorf("cannot resolve %s: %v", e.host, err)
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a.Unmap(), e.port))
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

// connect returns the first address of e that accepts a connection.
func connect(ctx context.Context, e endpoint, prefer netip.AddrPort) (netip.AddrPort, error) {
	addrs, err := lookup(ctx, e, prefer)
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
		err = fmt.Errorf("%s has no address", e.host)
	}
	return netip.AddrPort{}, fmt.Errorf("cannot connect: %v", err)
}

// resolveAPI finds where the REST interface of the sidecar beside a controller is; zero if it can't be reached from here:
// a loopback address means this host only if the controller is on this host too.
func resolveAPI(ctx context.Context, api endpoint, controller netip.AddrPort) netip.AddrPort {
	if api.port == 0 {
		return netip.AddrPort{}
	}
	addrs, err := lookup(ctx, api, netip.AddrPort{})
	if err != nil || len(addrs) == 0 || addrs[0].Addr().IsLoopback() && !controller.Addr().IsLoopback() {
		return netip.AddrPort{}
	}
	return addrs[0]
}
