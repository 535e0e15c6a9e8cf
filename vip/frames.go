package vip

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
)

// claim is the content of a frame that claims an address for a host.
type claim struct {
	ip  netip.Addr
	mac net.HardwareAddr
}

const (
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
	arpLength = 28
	ipv6Head  = 40
	etherHead = 14
	icmpv6    = 58
)

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// announcements returns the frames that announce to a network that mac has ip. For IPv4 these are
// both forms of gratuitous ARP: neighbors differ in which one they accept.
func announcements(mac net.HardwareAddr, ip netip.Addr) ([][]byte, error) {
	if ip.Is4() {
		return [][]byte{arp(arpRequest, mac, ip, make(net.HardwareAddr, 6), ip), arp(arpReply, mac, ip, broadcast, ip)}, nil
	}
	na := &ndp.NeighborAdvertisement{
		Override: true, TargetAddress: ip,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: mac}},
	}
	all := netip.IPv6LinkLocalAllNodes()
	frame, err := neighbor(na, mac, ip, all)
	return [][]byte{frame}, err
}

// probe returns the frame that asks for the holder of ip without claiming it.
func probe(mac net.HardwareAddr, ip netip.Addr) ([][]byte, error) {
	if ip.Is4() {
		return [][]byte{arp(arpRequest, mac, netip.IPv4Unspecified(), make(net.HardwareAddr, 6), ip)}, nil
	}
	group, err := ndp.SolicitedNodeMulticast(ip)
	if err != nil {
		return nil, fmt.Errorf("cannot ask for %s: %v", ip, err)
	}
	frame, err := neighbor(&ndp.NeighborSolicitation{TargetAddress: ip}, mac, netip.IPv6Unspecified(), group)
	return [][]byte{frame}, err
}

const (
	arpRequest = 1
	arpReply   = 2
)

// arp returns a broadcast Ethernet frame.
func arp(operation uint16, mac net.HardwareAddr, sender netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	b := ether(broadcast, mac, etherARP, arpLength)
	b = binary.BigEndian.AppendUint16(b, 1) // Ethernet
	b = binary.BigEndian.AppendUint16(b, 0x0800)
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(append(b, mac...), sender.AsSlice()...)
	return append(append(b, targetMAC...), target.AsSlice()...)
}

func ether(to, from net.HardwareAddr, kind uint16, room int) []byte {
	b := make([]byte, 0, etherHead+room)
	return binary.BigEndian.AppendUint16(append(append(b, to...), from...), kind)
}

// neighbor returns a frame with a neighbor discovery message to a multicast group.
func neighbor(m ndp.Message, mac net.HardwareAddr, from, to netip.Addr) ([]byte, error) {
	body, err := ndp.MarshalMessageChecksum(m, from, to)
	if err != nil {
		return nil, fmt.Errorf("cannot make a neighbor message: %v", err)
	}
	group := to.As16()
	b := ether(net.HardwareAddr{0x33, 0x33, group[12], group[13], group[14], group[15]}, mac, etherIPv6, ipv6Head+len(body))
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, icmpv6, 255)
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	return append(b, body...), nil
}

// parseClaim returns the claim in an Ethernet frame. Anybody can send anything: parseClaim checks
// only the frame's shape, and a claim causes nothing but a report and an announcement.
func parseClaim(b []byte) (claim, bool) {
	if len(b) < etherHead {
		return claim{}, false
	}
	body := b[etherHead:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherARP:
		if len(body) < arpLength || !bytes.Equal(body[:6], []byte{0, 1, 8, 0, 6, 4}) {
			return claim{}, false
		}
		ip := netip.AddrFrom4([4]byte(body[14:18]))
		if ip.IsUnspecified() { // a probe claims nothing
			return claim{}, false
		}
		return claim{ip, bytes.Clone(body[8:14])}, true
	case etherIPv6:
		if len(body) < ipv6Head || body[6] != icmpv6 || body[7] != 255 {
			return claim{}, false
		}
		length := int(binary.BigEndian.Uint16(body[4:]))
		if body = body[ipv6Head:]; length > len(body) {
			return claim{}, false
		}
		m, err := ndp.ParseMessage(body[:length])
		if err != nil {
			return claim{}, false
		}
		na, ok := m.(*ndp.NeighborAdvertisement)
		if !ok {
			return claim{}, false
		}
		from := net.HardwareAddr(bytes.Clone(b[6:12]))
		for _, o := range na.Options {
			if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == ndp.Target && len(l.Addr) == 6 {
				from = l.Addr
			}
		}
		return claim{na.TargetAddress, from}, true
	}
	return claim{}, false
}
