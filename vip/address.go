package vip

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Address is one virtual IP and its interface.
type Address struct {
	Prefix    netip.Prefix `json:"address"`
	Interface string       `json:"interface"`
}

// String returns the form that [ParseAddress] reads.
func (a Address) String() string { return a.Prefix.String() + "@" + a.Interface }

// ParseAddress parses ADDRESS/LENGTH@INTERFACE, such as 10.0.0.100/24@eth0.
func ParseAddress(text string) (Address, error) {
	address, name, found := strings.Cut(text, "@")
	if !found {
		return Address{}, fmt.Errorf("cannot read %q: write ADDRESS/LENGTH@INTERFACE, such as 10.0.0.100/24@eth0", text)
	}
	return NewAddress(address, name)
}

// NewAddress checks an address with its prefix length, and the name of an interface.
func NewAddress(address, name string) (Address, error) {
	prefix, err := parsePrefix(address)
	if err != nil {
		return Address{}, err
	}
	if err := CheckInterface(name); err != nil {
		return Address{}, err
	}
	return Address{Prefix: prefix, Interface: name}, nil
}

func parsePrefix(text string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(text); err == nil {
		return netip.Prefix{}, fmt.Errorf("cannot use %q without the length of its prefix: write %s/%d, or the length that the interface's own address has",
			text, ip, ip.BitLen())
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("cannot read %q: write an address and the length of its prefix, such as 10.0.0.100/24 or fd00::100/64", text)
	}
	ip := p.Addr()
	switch {
	case ip.Is4In6():
		return netip.Prefix{}, fmt.Errorf("cannot use %s: write the IPv4 address %s", text, ip.Unmap())
	case ip.IsUnspecified(), ip.IsMulticast(), ip.IsLoopback(), ip.IsLinkLocalUnicast():
		return netip.Prefix{}, fmt.Errorf("cannot use %s: it must be a unicast address that other hosts can reach", ip)
	case p.Bits() == 0:
		return netip.Prefix{}, fmt.Errorf("cannot use the prefix length 0: write %s/%d, or the length that the interface's own address has", ip, ip.BitLen())
	case ip.Is4() && p.Bits() < 31 && (ip == p.Masked().Addr() || ip == lastOf(p)):
		return netip.Prefix{}, fmt.Errorf("cannot use %s: it is the network's or its broadcast address", text)
	}
	return p, nil
}

// lastOf returns the last address of a prefix: for IPv4 the broadcast address.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// CheckInterface checks the name of an interface. The interface need not exist.
func CheckInterface(name string) error {
	switch {
	case name == "":
		return errors.New("cannot determine the interface of the address: name it, such as eth0")
	case len(name) > 15 || strings.ContainsAny(name, "/: \t\n") || name == "." || name == "..":
		return fmt.Errorf("cannot use %.40q as the name of an interface: it has 1 to 15 characters without spaces, colons and slashes", name)
	case name == "lo":
		return errors.New("cannot use lo: an address there is not announced to anyone; for a routed address see docs/virtual-ip.md")
	}
	return nil
}

// Duplicate returns the index of the first address that is already listed before it, or -1.
func Duplicate(all []Address) int {
	for i, a := range all {
		if slices.ContainsFunc(all[:i], func(b Address) bool { return a.Prefix.Addr() == b.Prefix.Addr() }) {
			return i
		}
	}
	return -1
}
