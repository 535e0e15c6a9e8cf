package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/mdlayher/ndp"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/packet"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// vipHelper runs this binary as one of the helpers of the virtual IP's tests. It reports whether
// args named one.
func vipHelper(args []string) (code int, is bool) {
	if len(args) < 2 {
		return 0, false
	}
	var err error
	switch args[1] {
	case "vip-controller":
		err = vipController()
	case "vip-client", "vip-judge":
		err = vipWatchAll(args[1] == "vip-judge", args[2:])
	case "vip-kernel":
		err = vipKernel(args[2:], vipPrint())
	case "vip-connections":
		err = vipConnections(args[2], args[3])
	case "vip-forward":
		err = vipForward(args[2], args[3])
	case "vip-forever":
		err = vipForever(args[2:])
	case "vip-check":
		err = vipCheck(args[2])
	default:
		return 0, false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, args[1]+":", err)
		return 1, true
	}
	return 0, true
}

// now reads CLOCK_BOOTTIME, which all namespaces of a machine share.
func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano()
}

// vipController serves on all addresses, and answers every request with its name.
func vipController() error {
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			in := bufio.NewReader(conn)
			for {
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				if line == "\r\n" {
					if _, err := fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(os.Getenv("TANIST_NAME")), os.Getenv("TANIST_NAME")); err != nil {
						return
					}
				}
			}
		}()
	}
}

// vipForward forwards connections to a Unix socket.
func vipForward(listen, to string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	vipPass(l, "unix", to)
	return nil
}

func vipPass(l net.Listener, network, to string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := net.DialTimeout(network, to, vipPatience)
			if err != nil {
				return
			}
			defer out.Close()
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
			_, _ = io.Copy(in, out)
		}()
	}
}

// vipCheck is keepalived's health check.
func vipCheck(address string) error {
	_, err := vipAsk(address, 100*time.Millisecond)
	return err
}

// vipAsk makes one request and returns who answered it.
func vipAsk(address string, limit time.Duration) (string, error) {
	conn, err := net.DialTimeout("tcp", address, limit)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(limit))
	return vipRequest(conn)
}

func vipRequest(conn net.Conn) (string, error) {
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return "", err
	}
	in := bufio.NewReader(conn)
	length := 0
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return "", err
		}
		if v, ok := strings.CutPrefix(line, "Content-Length: "); ok {
			if length, err = strconv.Atoi(strings.TrimSpace(v)); err != nil {
				return "", err
			}
		}
		if line == "\r\n" {
			break
		}
	}
	body := make([]byte, length)
	_, err := io.ReadFull(in, body)
	return string(body), err
}

// vipForever removes the limit of the lifetimes of addresses, and changes nothing else.
func vipForever(ips []string) error {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	all, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETADDR, Flags: netlink.Request | netlink.Dump}, Data: make([]byte, unix.SizeofIfAddrmsg),
	})
	if err != nil {
		return err
	}
	for _, m := range all {
		attributes, err := netlink.UnmarshalAttributes(m.Data[unix.SizeofIfAddrmsg:])
		if err != nil {
			return err
		}
		ours := false
		for _, a := range attributes {
			ip, _ := netip.AddrFromSlice(a.Data)
			ours = ours || a.Type == unix.IFA_ADDRESS && slices.Contains(ips, ip.String())
			if a.Type == unix.IFA_CACHEINFO {
				binary.NativeEndian.PutUint32(a.Data[4:], ^uint32(0))
			}
		}
		if !ours {
			continue
		}
		b, err := netlink.MarshalAttributes(attributes)
		if err != nil {
			return err
		}
		_, err = conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_NEWADDR, Flags: netlink.Request | netlink.Acknowledge | netlink.Replace},
			Data:   append(m.Data[:unix.SizeofIfAddrmsg:unix.SizeofIfAddrmsg], b...),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// vipSeen is one observation of the client or the judge, as a line of JSON.
type vipSeen struct {
	At   int64  `json:"at"`
	Kind string `json:"kind"` // http, ping, answer (to a probe), claim (unsolicited), or what a kernel did
	IP   string `json:"ip"`
	Who  string `json:"who,omitempty"` // the name for http, the hardware address for answer and claim
	N    int64  `json:"n,omitempty"`   // the number of the probe that was answered
}

// vipPrint returns a function that prints observations. Any goroutine may call it.
func vipPrint() func(vipSeen) {
	var mu sync.Mutex
	out := bufio.NewWriter(os.Stdout)
	return func(s vipSeen) {
		mu.Lock()
		defer mu.Unlock()
		_ = json.NewEncoder(out).Encode(s)
		_ = out.Flush()
	}
}

// vipWatchAll asks the addresses 100 times a second by HTTP and by ping or, as the judge, asks 50
// times a second which host has them, until stdin ends. It prints what succeeded. The judge is not
// the client's host, because the answers to its probes would update the client's neighbor table.
func vipWatchAll(judge bool, ips []string) error {
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	see := vipPrint()
	var all sync.WaitGroup
	errs := make(chan error, 10)
	for _, text := range ips {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		if judge {
			all.Go(func() { errs <- vipWho(ctx, ip, see) })
			continue
		}
		all.Go(func() {
			every(ctx, 10*time.Millisecond, func(int64) {
				go func() {
					who, err := vipAsk(netip.AddrPortFrom(ip, 8080).String(), 200*time.Millisecond)
					if err == nil {
						see(vipSeen{At: now(), Kind: "http", IP: text, Who: who})
					}
				}()
			})
		})
		all.Go(func() { errs <- vipPing(ctx, ip, see) })
	}
	go func() {
		for err := range errs {
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}()
	all.Wait()
	return nil
}

func every(ctx context.Context, d time.Duration, do func(n int64)) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for n := int64(1); ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do(n)
		}
	}
}

func vipPing(ctx context.Context, ip netip.Addr, see func(vipSeen)) error {
	network, bind, kind, protocol := "ip4:icmp", "0.0.0.0", icmp.Type(ipv4.ICMPTypeEcho), 1
	reply := icmp.Type(ipv4.ICMPTypeEchoReply)
	if ip.Is6() {
		network, bind, kind, reply, protocol = "ip6:ipv6-icmp", "::", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	conn, err := icmp.ListenPacket(network, bind)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	go every(ctx, 10*time.Millisecond, func(n int64) {
		m := icmp.Message{Type: kind, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: int(n & 0xffff)}}
		if b, err := m.Marshal(nil); err == nil {
			_, _ = conn.WriteTo(b, &net.IPAddr{IP: ip.AsSlice()})
		}
	})
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if m, err := icmp.ParseMessage(protocol, buf[:n]); err == nil && m.Type == reply && from.String() == ip.String() {
			see(vipSeen{At: now(), Kind: "ping", IP: ip.String()})
		}
	}
}

// vipWho asks which host has ip. It reads the frames, so no cache can mislead it.
func vipWho(ctx context.Context, ip netip.Addr, see func(vipSeen)) error {
	i, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	kind := 0x0806
	if ip.Is6() {
		kind = 0x86dd
	}
	conn, err := packet.Listen(i, packet.Raw, kind, nil)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	question, err := vipQuestion(i.HardwareAddr, ip)
	if err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	stamps := newStamps(raw)
	var asked probes
	go every(ctx, 20*time.Millisecond, func(int64) {
		asked.add(now())
		_, _ = conn.WriteTo(question, &packet.Addr{HardwareAddr: question[:6]})
	})
	buf := make([]byte, 2000)
	for {
		n, _, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		at := stamps.last()
		if mac, solicited, ok := vipAnswer(buf[:n], ip); ok {
			kind := "claim"
			if solicited {
				kind = "answer"
			}
			see(vipSeen{At: at, Kind: kind, IP: ip.String(), Who: mac, N: asked.before(at)})
		}
	}
}

// probes is when each probe was sent.
type probes struct {
	mu   sync.Mutex
	sent []int64
}

func (p *probes) add(at int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = append(p.sent, at)
}

// before returns the number of the last probe before an instant.
func (p *probes) before(at int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	i, _ := slices.BinarySearch(p.sent, at)
	return int64(i)
}

// stamps reports when the frame that was read last had arrived, by the kernel. On a busy machine it is
// read later, after the next probe.
type stamps struct {
	raw   syscall.RawConn
	ahead int64 // of CLOCK_REALTIME, by which the kernel stamps, to CLOCK_BOOTTIME
}

func newStamps(raw syscall.RawConn) *stamps {
	s := &stamps{raw: raw, ahead: -1 << 62}
	for range 20 { // this thread may be interrupted between the two clocks
		boot := now()
		s.ahead = max(s.ahead, boot-time.Now().UnixNano())
	}
	s.last() // the first one makes the kernel begin
	return s
}

func (s *stamps) last() int64 {
	var stamp unix.Timespec
	var errno unix.Errno
	err := s.raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCGSTAMPNS, uintptr(unsafe.Pointer(&stamp)))
	})
	if err != nil || errno != 0 {
		return now()
	}
	return min(stamp.Nano()+s.ahead, now())
}

// vipJudge6 is the judge's own address. Solicited answers go only to it.
const vipJudge6 = "fd66::8"

// vipQuestion returns an ARP probe or a neighbor solicitation.
func vipQuestion(mac net.HardwareAddr, ip netip.Addr) ([]byte, error) {
	if ip.Is4() {
		b := bytes.Repeat([]byte{0xff}, 6)
		b = append(append(b, mac...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
		b = append(append(b, mac...), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
		return append(b, ip.AsSlice()...), nil
	}
	group, err := ndp.SolicitedNodeMulticast(ip)
	if err != nil {
		return nil, err
	}
	from := netip.MustParseAddr(vipJudge6)
	body, err := ndp.MarshalMessageChecksum(&ndp.NeighborSolicitation{
		TargetAddress: ip, Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac}},
	}, from, group)
	if err != nil {
		return nil, err
	}
	g := group.As16()
	b := append([]byte{0x33, 0x33, g[12], g[13], g[14], g[15]}, mac...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, 58, 255)
	b = append(append(b, from.AsSlice()...), g[:]...)
	return append(b, body...), nil
}

// vipAnswer returns the hardware address that a frame claims for ip, and whether a probe solicited
// it.
func vipAnswer(b []byte, ip netip.Addr) (mac string, solicited, ok bool) {
	if ip.Is4() {
		if len(b) < 42 || !bytes.Equal(b[28:32], ip.AsSlice()) {
			return "", false, false
		}
		gratuitous := bytes.Equal(b[38:42], b[28:32])
		return net.HardwareAddr(b[22:28]).String(), b[21] == 2 && !gratuitous, true
	}
	if len(b) < 14+40+24 || b[20] != 58 || b[54] != 136 {
		return "", false, false
	}
	m, err := ndp.ParseMessage(b[54:min(len(b), 54+int(binary.BigEndian.Uint16(b[18:])))])
	if err != nil {
		return "", false, false
	}
	na, isNA := m.(*ndp.NeighborAdvertisement)
	if !isNA || na.TargetAddress != ip {
		return "", false, false
	}
	return net.HardwareAddr(b[6:12]).String(), na.Solicited, true
}

// vipConnections opens connections that send a request every 50 ms until all have ended. It prints
// how and when each ended. A connection whose request the old host has acknowledged but not answered
// has nothing to send: only its keepalive finds out that the new host does not know it.
func vipConnections(address, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	ready := make(chan error, n)
	var mu sync.Mutex
	for range n {
		all.Go(func() {
			dialer := net.Dialer{Timeout: vipPatience, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 5}}
			conn, err := dialer.Dial("tcp", address)
			if err == nil {
				_ = conn.SetDeadline(time.Now().Add(vipPatience))
				_, err = vipRequest(conn)
			}
			ready <- err
			if err != nil {
				return
			}
			defer conn.Close()
			how := ""
			for how == "" {
				time.Sleep(50 * time.Millisecond)
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				switch _, err := vipRequest(conn); {
				case err == nil:
				case errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE):
					how = "reset"
				case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
					how = "closed"
				default:
					how = "hung: " + err.Error()
				}
			}
			mu.Lock()
			defer mu.Unlock()
			fmt.Println(now(), how)
		})
	}
	for range n {
		if err := <-ready; err != nil {
			return err
		}
	}
	mu.Lock()
	fmt.Println("ready")
	mu.Unlock()
	all.Wait()
	return nil
}
