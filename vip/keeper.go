package vip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// controlFD is the keeper's connection to its holder.
const controlFD = 3

// Exit codes of a keeper.
const (
	keeperDone    = 0
	keeperUsage   = 64 // it was started by hand
	keeperRefused = 65
)

// Keep runs the keeper, for the subcommand that [Config.Args] names. It must be called before
// anything else, and returns the exit code. It returns once the holder has ended and nothing is
// held.
func Keep() int {
	debug.SetMemoryLimit(32 << 20)
	unix.CloseOnExec(controlFD)
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE, unix.SIGTSTP,
		unix.SIGTTIN, unix.SIGTTOU)
	f := os.NewFile(controlFD, "control")
	conn, err := net.FileConn(f)
	f.Close()
	control, ok := conn.(*net.UnixConn)
	if err != nil || !ok {
		fmt.Fprintln(os.Stderr, "tanist vip-keeper: it is started by a sidecar, not by hand")
		return keeperUsage
	}
	buf := make([]byte, recordMax)
	var first order
	if err := recv(control, buf, &first); err != nil || first.Op != orderBegin {
		fmt.Fprintln(os.Stderr, "tanist vip-keeper: it is started by a sidecar, not by hand")
		return keeperUsage
	}
	k, err := newKeeper(first)
	if err != nil {
		_ = send(control, report{Seq: first.Seq, Err: err.Error()})
		return keeperRefused
	}
	defer k.close()
	k.control = control
	k.answer(control, first.Seq, nil)
	k.loop(k.orders(control))
	return keeperDone
}

// keeper is the state of the keeper process. Its loop owns the fields.
type keeper struct {
	desk      *desk
	addresses []Address
	kernel    *kernel
	changes   *changes
	ports     map[string]*port
	heard     chan claim
	control   *net.UnixConn // nil: the holder has ended
	next      *successors   // nil: no later keeper can find this one
	view      view
	last      []Status
}

func newKeeper(first order) (k *keeper, err error) {
	k = &keeper{desk: newDesk(first.Addresses), addresses: first.Addresses, ports: map[string]*port{}, heard: make(chan claim, 64)}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	prefer()
	if err := onlyNetwork(); err != nil {
		return nil, err
	}
	if k.kernel, err = openKernel(); err != nil {
		return nil, err
	}
	if k.changes, err = watchKernel(); err != nil {
		return nil, err
	}
	if first.Socket != "" {
		before, err := relieve(first.Socket)
		if err != nil {
			return nil, err
		}
		if k.next, err = awaitSuccessors(first.Socket); err != nil {
			return nil, err
		}
		if err := k.adopt(before); err != nil {
			return nil, err
		}
	}
	k.step()
	return k, nil
}

// adopt takes over what an earlier keeper left in the kernel.
func (k *keeper) adopt(before *report) error {
	var err error
	if k.view, err = k.kernel.look(); err != nil {
		return err
	}
	k.desk.inherit(election.BootClock(), before, k.view)
	return nil
}

func (k *keeper) close() {
	if k.next != nil {
		k.next.close()
	}
	for _, p := range k.ports {
		p.close()
	}
	if k.changes != nil {
		k.changes.close()
	}
	if k.kernel != nil {
		k.kernel.close()
	}
}

// orders returns a channel that is closed when the holder has ended.
func (k *keeper) orders(control *net.UnixConn) <-chan order {
	orders := make(chan order)
	go func() { // ends with the holder, or with this process
		defer close(orders)
		buf := make([]byte, recordMax)
		for {
			var o order
			if err := recv(control, buf, &o); err != nil {
				return
			}
			orders <- o
		}
	}()
	return orders
}

// loop runs until the holder has ended and nothing is held, or until a later keeper has taken over.
func (k *keeper) loop(orders <-chan order) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var relieved <-chan *net.UnixConn
	if k.next != nil {
		relieved = k.next.conns
	}
	for {
		due := k.step()
		if k.control == nil && !k.desk.holding && k.leftovers() == 0 {
			return
		}
		timer.Reset(max(0, min(due.Sub(election.BootClock()), time.Hour)))
		select {
		case o, ok := <-orders:
			if !ok {
				orders, k.control = nil, nil
				break
			}
			k.obey(o)
		case c := <-k.heard:
			k.desk.heard(election.BootClock(), c, k.view)
		case <-k.changes.hint:
		case conn := <-relieved:
			if k.leave(conn) {
				return
			}
		case <-timer.C:
		}
	}
}

// obey carries out one order, and all that follows from it, before it answers.
func (k *keeper) obey(o order) {
	now := election.BootClock()
	k.desk.expire(now)
	var err error
	switch o.Op {
	case orderLook:
		k.desk.look(now)
	case orderHold:
		err = k.desk.hold(now, o.Term, o.Deadline)
	case orderExtend:
		k.desk.extend(now, o.Term, o.Deadline)
	case orderRelease:
		k.desk.release()
	default:
		err = fmt.Errorf("cannot carry out %q: it is of another version", o.Op)
	}
	k.step()
	k.answer(k.control, o.Seq, err)
}

// leave hands over to a later keeper: the addresses stay in the kernel. It reports whether it did.
func (k *keeper) leave(conn *net.UnixConn) bool {
	defer func() { _ = conn.Close() }()
	buf := make([]byte, recordMax)
	_ = conn.SetReadDeadline(time.Now().Add(leaveWithin))
	var o order
	if recv(conn, buf, &o) != nil || o.Op != orderLeave {
		return false
	}
	k.desk.expire(election.BootClock())
	k.answer(conn, o.Seq, nil)
	return true
}

func (k *keeper) answer(conn *net.UnixConn, seq uint64, err error) {
	if conn == nil {
		return
	}
	r := report{
		Seq: seq, Holding: k.desk.holding, Term: k.desk.term, Deadline: k.desk.deadline, Lapsed: k.desk.lapsed,
		Addresses: k.desk.statuses(), Left: k.leftovers(),
	}
	if err != nil {
		r.Err = err.Error()
	}
	_ = send(conn, r) // a holder that does not read is frozen or gone
}

// leftovers returns how many of our addresses the kernel has.
func (k *keeper) leftovers() int {
	n := 0
	for _, a := range k.addresses {
		if p, ok := k.view.find(a); ok && p.mine {
			n++
		}
	}
	return n
}

// step does what is due, and returns the time of the next step.
func (k *keeper) step() election.Instant {
	now := election.BootClock()
	v, err := k.kernel.look()
	if err != nil {
		return now.Add(retryEvery)
	}
	k.notice(v, now)
	k.view = v
	acts, next := k.desk.plan(now, v)
	failed := map[string]bool{}
	for _, a := range acts {
		if failed[a.String()] {
			continue // an address that could not be added must not be announced
		}
		if err := k.carryOut(a); err != nil {
			failed[a.String()] = true
			for _, s := range k.desk.spots {
				if s.Prefix.Addr() == a.Prefix.Addr() && s.Interface == a.Interface {
					s.failed(now, err)
				}
			}
			next = min(next, now.Add(retryEvery))
		}
	}
	if len(acts) > 0 {
		if v, err := k.kernel.look(); err == nil {
			k.view = v
		}
	}
	k.tidyPorts()
	if statuses := k.desk.statuses(); !reflect.DeepEqual(statuses, k.last) {
		k.last = statuses
		k.answer(k.control, 0, nil)
	}
	return next
}

// notice compares the current state of the kernel with the last one.
func (k *keeper) notice(v view, now election.Instant) {
	for name, p := range k.ports {
		before := k.view.links[name]
		switch l, ok := v.links[name]; {
		case !ok || l.index != p.index || l.up && !before.up:
			p.close() // its socket receives nothing any more
			delete(k.ports, name)
			k.desk.relink(now, name)
		case !bytes.Equal(l.mac, before.mac): // neighbors know the old one
			k.desk.relink(now, name)
		}
	}
}

// tidyPorts closes unneeded ports, so that the network does not wake a passive host's keeper.
func (k *keeper) tidyPorts() {
	if k.desk.holding || k.desk.looking {
		return
	}
	for name, p := range k.ports {
		p.close()
		delete(k.ports, name)
	}
}

func (k *keeper) carryOut(a action) error {
	l := k.view.links[a.Interface]
	switch a.kind {
	case actionAdd:
		return k.kernel.add(l, a.Address, a.life, k.onLink(a.Address))
	case actionRenew:
		return k.kernel.renew(l, a.Address, a.life, k.onLink(a.Address))
	case actionRemove:
		return k.kernel.remove(l, a.Address)
	}
	if len(a.mac) != 6 {
		return nil // not Ethernet: there is nobody to announce it to
	}
	p := k.ports[a.Interface]
	if p == nil {
		var err error
		if p, err = openPort(a.Interface, l.index, k.addresses, k.heard); err != nil {
			return err
		}
		k.ports[a.Interface] = p
	}
	ip := a.Prefix.Addr()
	frames, err := announcements(a.mac, ip)
	if a.kind == actionProbe {
		frames, err = probe(a.mac, ip)
	}
	if err != nil {
		return err
	}
	_ = p.send(ip, frames...) // if the interface went down meanwhile, the keeper notices and sends again
	return nil
}

// onLink reports whether the interface has another address of the same network.
func (k *keeper) onLink(a Address) bool {
	return slices.ContainsFunc(k.view.there, func(p present) bool {
		return p.Interface == a.Interface && p.Prefix.Addr() != a.Prefix.Addr() && p.Prefix.Masked() == a.Prefix.Masked()
	})
}

const (
	leaveWithin = 200 * time.Millisecond
	endWithin   = 2 * time.Second
)

// relieve asks the keeper of an earlier process to leave, and returns what it held, or nil if there
// is none. It kills a keeper that does not answer, because that one is frozen.
func relieve(path string) (*report, error) {
	conn, err := (&net.Dialer{Timeout: leaveWithin}).DialContext(context.Background(), "unixpacket", path)
	if err != nil {
		return nil, nil //nolint:nilerr // nobody listens: there is no earlier keeper
	}
	before := conn.(*net.UnixConn)
	defer func() { _ = before.Close() }()
	pid, err := peerPID(before)
	if err != nil {
		return nil, fmt.Errorf("cannot take over from the process at %s: %v", path, err)
	}
	handle, err := os.FindProcess(pid) // a pidfd: it refers to this process only
	if err != nil {
		return nil, fmt.Errorf("cannot take over from the process at %s: %v", path, err)
	}
	defer func() { _ = handle.Release() }()
	buf := make([]byte, recordMax)
	_ = before.SetReadDeadline(time.Now().Add(leaveWithin))
	var held *report
	if send(before, order{Op: orderLeave}) == nil {
		var r report
		if recv(before, buf, &r) == nil {
			held = &r
		}
	}
	if held == nil {
		_ = handle.Kill()
	}
	// It closes its end once it has ended or will do nothing more.
	_ = before.SetReadDeadline(time.Now().Add(endWithin))
	if _, err := before.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("cannot take over from process %d at %s: it does not end", pid, path)
	}
	return held, nil
}

// successors accepts later keepers.
type successors struct {
	listener *net.UnixListener
	conns    chan *net.UnixConn
	ended    chan struct{}
}

func awaitSuccessors(path string) (*successors, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot listen at %s: %v", path, err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("cannot listen at %s: %v", path, err)
	}
	l.SetUnlinkOnClose(false) // by then the file may be the next keeper's
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("cannot listen at %s: %v", path, err)
	}
	s := &successors{listener: l, conns: make(chan *net.UnixConn), ended: make(chan struct{})}
	go func() { // ends with the listener
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if _, err := peerPID(conn); err != nil {
				_ = conn.Close()
				continue
			}
			select {
			case s.conns <- conn:
			case <-s.ended:
				_ = conn.Close()
				return
			}
		}
	}()
	return s, nil
}

func (s *successors) close() {
	close(s.ended)
	_ = s.listener.Close()
}
