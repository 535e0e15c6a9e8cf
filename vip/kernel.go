package vip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// protocol marks our addresses in the kernel: attribute IFA_PROTO, which ip(8) shows as "proto 84".
const protocol = 0x54

// ifaProto and the others are missing from x/sys.
const (
	ifaProto     = 11
	ifAddrLength = 8
	infiniteLife = ^uint32(0)
	flagNoDAD    = 0x02
	flagNoRoute  = 0x200
)

// kernel adds and removes addresses by rtnetlink.
type kernel struct {
	conn *netlink.Conn
}

func openKernel() (*kernel, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot talk to the kernel's network configuration: %v", err)
	}
	return &kernel{conn: conn}, nil
}

func (k *kernel) close() { _ = k.conn.Close() }

// look returns the current state of the kernel.
func (k *kernel) look() (view, error) {
	v := view{links: map[string]link{}}
	interfaces, err := net.Interfaces()
	if err != nil {
		return v, fmt.Errorf("cannot list the network interfaces: %v", err)
	}
	names := map[int]string{}
	for _, i := range interfaces {
		names[i.Index] = i.Name
		v.links[i.Name] = link{index: i.Index, up: i.Flags&net.FlagUp != 0 && i.Flags&net.FlagRunning != 0, mac: i.HardwareAddr}
	}
	request := netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETADDR, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, ifAddrLength),
	}
	replies, err := k.conn.Execute(request)
	if err != nil {
		return v, fmt.Errorf("cannot list the addresses: %v", err)
	}
	marks := false // the kernel supports IFA_PROTO: it sets it on ::1 and link-local addresses itself
	var parsed []reply
	for _, m := range replies {
		r, err := parseReply(m.Data)
		if err != nil {
			return v, err
		}
		marks = marks || r.proto != 0
		parsed = append(parsed, r)
	}
	for _, r := range parsed {
		name, ok := names[r.index]
		if !ok || !r.ip.IsValid() {
			continue
		}
		p := present{Address: Address{Prefix: netip.PrefixFrom(r.ip, r.bits), Interface: name}, life: r.life}
		p.mine = r.proto == protocol || r.ip.Is4() && r.label != "" && r.label == label(name) ||
			!marks && r.ip.Is6() && r.life != forever && r.flags&flagNoDAD != 0
		v.there = append(v.there, p)
	}
	return v, nil
}

// reply is one address as the kernel reports it.
type reply struct {
	ip    netip.Addr
	bits  int
	index int
	label string
	proto uint8
	flags uint32
	life  time.Duration
}

func parseReply(b []byte) (reply, error) {
	if len(b) < ifAddrLength {
		return reply{}, errors.New("cannot read an address of the kernel's: it is cut short")
	}
	r := reply{bits: int(b[1]), flags: uint32(b[2]), index: int(binary.NativeEndian.Uint32(b[4:])), life: forever}
	attributes, err := netlink.NewAttributeDecoder(b[ifAddrLength:])
	if err != nil {
		return reply{}, fmt.Errorf("cannot read an address of the kernel's: %v", err)
	}
	var local, remote []byte
	for attributes.Next() {
		switch attributes.Type() {
		case unix.IFA_ADDRESS:
			remote = attributes.Bytes()
		case unix.IFA_LOCAL:
			local = attributes.Bytes()
		case unix.IFA_LABEL:
			r.label = attributes.String()
		case unix.IFA_FLAGS:
			r.flags = attributes.Uint32()
		case ifaProto:
			r.proto = attributes.Uint8()
		case unix.IFA_CACHEINFO:
			if c := attributes.Bytes(); len(c) >= 8 {
				if valid := binary.NativeEndian.Uint32(c[4:]); valid != infiniteLife {
					r.life = time.Duration(valid) * time.Second
				}
			}
		}
	}
	if local == nil {
		local = remote
	}
	r.ip, _ = netip.AddrFromSlice(local)
	return r, attributes.Err()
}

// label marks an IPv4 address on kernels without IFA_PROTO, and for ip(8). A label begins with the
// name of the interface and has at most 15 characters.
func label(name string) string {
	for _, end := range []string{":tanist", ":tan", ":t"} {
		if len(name)+len(end) <= 15 {
			return name + end
		}
	}
	return ""
}

// add adds an address that the kernel removes after life.
func (k *kernel) add(l link, a Address, life time.Duration, onLink bool) error {
	err := k.set(l, a, life, onLink, netlink.Create|netlink.Excl)
	if err != nil && errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot add %s to %s: somebody else has just added it", a.Prefix, a.Interface)
	}
	return err
}

// renew resets the lifetime of an address.
func (k *kernel) renew(l link, a Address, life time.Duration, onLink bool) error {
	return k.set(l, a, life, onLink, netlink.Replace)
}

// set adds or changes an address. onLink means that the interface has another address of the same
// network.
func (k *kernel) set(l link, a Address, life time.Duration, onLink bool, flags netlink.HeaderFlags) error {
	seconds := uint32(life / time.Second)
	preferred, ifaFlags := seconds, uint32(0)
	if a.Prefix.Addr().Is6() {
		// The network has been asked already. A deprecated address is not used for connections that
		// the host opens.
		preferred, ifaFlags = 0, flagNoDAD
		if onLink {
			ifaFlags |= flagNoRoute // keep the route of the other address
		}
	}
	life4 := make([]byte, 16)
	binary.NativeEndian.PutUint32(life4, preferred)
	binary.NativeEndian.PutUint32(life4[4:], seconds)
	return k.change(unix.RTM_NEWADDR, flags, l, a, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.IFA_FLAGS, ifaFlags)
		ae.Uint8(ifaProto, protocol)
		ae.Bytes(unix.IFA_CACHEINFO, life4)
		if text := label(a.Interface); a.Prefix.Addr().Is4() && text != "" {
			ae.String(unix.IFA_LABEL, text)
		}
	})
}

// remove removes an address. An absent address is not an error.
func (k *kernel) remove(l link, a Address) error {
	err := k.change(unix.RTM_DELADDR, 0, l, a, func(*netlink.AttributeEncoder) {})
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func (k *kernel) change(kind netlink.HeaderType, flags netlink.HeaderFlags, l link, a Address, more func(*netlink.AttributeEncoder)) error {
	ip := a.Prefix.Addr()
	body := make([]byte, ifAddrLength)
	body[0], body[1] = unix.AF_INET, byte(a.Prefix.Bits())
	if ip.Is6() {
		body[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(body[4:], uint32(l.index))
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.IFA_LOCAL, ip.AsSlice())
	ae.Bytes(unix.IFA_ADDRESS, ip.AsSlice())
	more(ae)
	attributes, err := ae.Encode()
	if err != nil {
		return fmt.Errorf("cannot describe %s to the kernel: %v", a.Prefix, err)
	}
	_, err = k.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | flags}, Data: slices.Concat(body, attributes),
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("cannot change %s on %s: CAP_NET_ADMIN is missing", a.Prefix, a.Interface)
	}
	verb := "add"
	if kind == unix.RTM_DELADDR {
		verb = "remove"
	}
	return fmt.Errorf("cannot %s %s on %s: %w", verb, a.Prefix, a.Interface, err)
}

// changes sends a hint for every change of links and addresses, until close is called. One hint may
// stand for several changes.
type changes struct {
	conn *netlink.Conn
	hint chan struct{}
	done sync.WaitGroup
}

func watchKernel() (*changes, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{
		Groups: 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1),
	})
	if err != nil {
		return nil, fmt.Errorf("cannot watch the kernel's network configuration: %v", err)
	}
	c := &changes{conn: conn, hint: make(chan struct{}, 1)}
	c.done.Go(func() {
		for {
			_, err := conn.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) { // ENOBUFS means that messages were lost: a hint too
				return
			}
			select {
			case c.hint <- struct{}{}:
			default:
			}
		}
	})
	return c, nil
}

func (c *changes) close() {
	_ = c.conn.Close()
	c.done.Wait()
}
