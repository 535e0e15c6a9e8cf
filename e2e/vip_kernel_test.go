package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The kinds of what the kernels recorded. Renewing a lifetime is an addition too.
const (
	kernelAdds    = "kernel adds"
	kernelRemoves = "kernel removes"
)

// vipKernel prints every addition and removal of an address by the kernels of other network
// namespaces, until stdin ends. hosts are pairs such as 1=ctl-a, the namespace's number being the
// one that [vipSite.host] has given it. All of them report to one socket, so the order of the
// lines is the order in which it happened, even between hosts.
func vipKernel(hosts []string, see func(vipSeen)) error {
	names := map[int32]string{}
	for _, pair := range hosts {
		text, name, _ := strings.Cut(pair, "=")
		id, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		names[int32(id)] = name
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1); err != nil {
		return err
	}
	// A lost message is an error of Recvmsg.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
		return err
	}
	groups := uint32(1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1))
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return err
	}
	see(vipSeen{At: now(), Kind: "kernel"}) // from here on nothing is missed
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
		os.Exit(0) // Recvmsg does not return
	}()
	buf, oob := make([]byte, 64<<10), make([]byte, 256)
	for ctx.Err() == nil {
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, 0)
		if err != nil {
			return fmt.Errorf("cannot read what the kernel did: %w", err)
		}
		name := names[vipNamespace(oob[:oobn])]
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return err
		}
		for _, m := range messages {
			kind := map[uint16]string{unix.RTM_NEWADDR: kernelAdds, unix.RTM_DELADDR: kernelRemoves}[m.Header.Type]
			attributes, err := syscall.ParseNetlinkRouteAttr(&m)
			if err != nil || kind == "" || name == "" {
				continue
			}
			for _, a := range attributes {
				if ip, ok := netip.AddrFromSlice(a.Value); ok && a.Attr.Type == unix.IFA_ADDRESS {
					see(vipSeen{At: now(), Kind: kind, IP: ip.String(), Who: name})
				}
			}
		}
	}
	return nil
}

// vipNamespace returns the number of the namespace that a message is about, or -1.
func vipNamespace(oob []byte) int32 {
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	for _, c := range controls {
		if c.Header.Level == unix.SOL_NETLINK && c.Header.Type == unix.NETLINK_LISTEN_ALL_NSID && len(c.Data) >= 4 {
			return int32(binary.NativeEndian.Uint32(c.Data))
		}
	}
	return -1
}

// record starts the record of what the kernels of both hosts do with addresses.
func (s *vipSite) record() *vipWatch {
	s.t.Helper()
	w := &vipWatch{s: s}
	lan := &vipHost{vipSite: s, space: s.a.lan()}
	w.start(lan, "vip-kernel", []string{fmt.Sprintf("%d=%s", s.a.number(), s.a.name), fmt.Sprintf("%d=%s", s.b.number(), s.b.name)})
	s.t.Cleanup(w.end)
	s.await(vipPatience, "the kernels' record has begun", func() bool { return len(w.seen("kernel", "")) > 0 })
	return w
}

// kernel returns what the kernels did with an address, in the order in which they did it.
func (w *vipWatch) kernel(ip string) []vipSeen {
	w.s.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var some []vipSeen
	for _, s := range w.all {
		if s.IP == ip && (s.Kind == kernelAdds || s.Kind == kernelRemoves) {
			some = append(some, s)
		}
	}
	return some
}

// renewed reports whether a host's kernel has got a new lifetime for both addresses since.
func (w *vipWatch) renewed(who string, since int64) bool {
	return !slices.ContainsFunc(bothIPs, func(ip string) bool {
		return !slices.ContainsFunc(w.kernel(ip), func(s vipSeen) bool { return s.Kind == kernelAdds && s.Who == who && s.At > since })
	})
}

// kept fails the test unless both addresses were on a host all the time, and never on another.
func (w *vipWatch) kept(who string) {
	w.s.t.Helper()
	for _, ip := range bothIPs {
		for _, s := range w.kernel(ip) {
			if s.Kind == kernelRemoves || s.Who != who {
				w.s.t.Errorf("%s was not kept: %s on %s", ip, s.Kind, s.Who)
			}
		}
	}
}

// neverOnTwo fails the test if an address was added to a host before it was removed from the other.
// At first it was on the host that is named.
func (w *vipWatch) neverOnTwo(first string) {
	w.s.t.Helper()
	for _, ip := range bothIPs {
		on := first
		for _, s := range w.kernel(ip) {
			switch {
			case s.Kind == kernelAdds && on != "" && on != s.Who:
				w.s.t.Errorf("%s was added to %s while it was on %s", ip, s.Who, on)
				return
			case s.Kind == kernelAdds:
				on = s.Who
			case on == s.Who:
				on = ""
			}
		}
	}
}
