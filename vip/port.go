package vip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
)

// port sends and receives frames on one interface.
type port struct {
	index   int
	arp, v6 *packet.Conn // nil where no address needs it
	done    sync.WaitGroup
}

// openPort opens what the addresses on an interface need. heard receives claims until the port is
// closed.
func openPort(name string, index int, addresses []Address, heard chan<- claim) (*port, error) {
	p := &port{index: index}
	for _, a := range addresses {
		if a.Interface != name {
			continue
		}
		conn, kind, filter := &p.arp, etherARP, []bpf.Instruction(nil)
		if a.Prefix.Addr().Is6() {
			conn, kind, filter = &p.v6, etherIPv6, onlyAdvertisements
		}
		if *conn != nil {
			continue
		}
		opened, err := listenPacket(name, index, kind, filter)
		if err != nil {
			p.close()
			return nil, err
		}
		*conn = opened
		p.done.Go(func() { receive(opened, heard) })
	}
	return p, nil
}

// onlyAdvertisements filters for ICMPv6 messages of type 136, so that traffic does not wake the
// keeper.
var onlyAdvertisements = []bpf.Instruction{
	bpf.LoadAbsolute{Off: etherHead + 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmpv6, SkipTrue: 3},
	bpf.LoadAbsolute{Off: etherHead + ipv6Head, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 136, SkipTrue: 1},
	bpf.RetConstant{Val: 0xffff},
	bpf.RetConstant{Val: 0},
}

func listenPacket(name string, index, kind int, filter []bpf.Instruction) (*packet.Conn, error) {
	var cfg *packet.Config
	if filter != nil {
		raw, err := bpf.Assemble(filter)
		if err != nil {
			return nil, fmt.Errorf("cannot filter frames: %v", err)
		}
		cfg = &packet.Config{Filter: raw}
	}
	conn, err := packet.Listen(&net.Interface{Index: index, Name: name}, packet.Raw, kind, cfg)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("cannot announce addresses on %s: CAP_NET_RAW is missing", name)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot announce addresses on %s: %v", name, err)
	}
	return conn, nil
}

func receive(conn *packet.Conn, heard chan<- claim) {
	buf := make([]byte, 2048)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return // closed, or the interface is gone; then the port is reopened
		}
		if c, ok := parseClaim(buf[:n]); ok {
			select {
			case heard <- c:
			default: // a flood must not block anything
			}
		}
	}
}

func (p *port) send(ip netip.Addr, frames ...[]byte) error {
	conn := p.arp
	if ip.Is6() {
		conn = p.v6
	}
	for _, f := range frames {
		if _, err := conn.WriteTo(f, &packet.Addr{HardwareAddr: net.HardwareAddr(f[:6])}); err != nil {
			return err
		}
	}
	return nil
}

func (p *port) close() {
	for _, c := range []*packet.Conn{p.arp, p.v6} {
		if c != nil {
			_ = c.Close()
		}
	}
	p.done.Wait()
}
