package vip

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// The holder and its keeper send each other one JSON record per packet of a Unix socket of type
// SEQPACKET.

// order is a message from a holder to its keeper, or from a keeper to its predecessor.
type order struct {
	Seq       uint64           `json:"seq,omitempty"`
	Op        orderKind        `json:"op"`
	Addresses []Address        `json:"addresses,omitempty"` // begin
	Socket    string           `json:"socket,omitempty"`    // begin: where the next keeper finds this one; empty: nowhere
	Term      election.Term    `json:"term,omitempty"`
	Deadline  election.Instant `json:"deadline,omitempty"`
}

type orderKind string

const (
	orderBegin   orderKind = "begin" // the first
	orderLook    orderKind = "look"
	orderHold    orderKind = "hold"
	orderExtend  orderKind = "extend"
	orderRelease orderKind = "release"
	orderLeave   orderKind = "leave" // from the next keeper: end, and leave the addresses in place
)

// report is a keeper's answer, and its message when something has changed.
type report struct {
	Seq       uint64           `json:"seq,omitempty"` // of the answered order
	Err       string           `json:"err,omitempty"` // why the order was refused
	Holding   bool             `json:"holding"`
	Term      election.Term    `json:"term,omitempty"`
	Deadline  election.Instant `json:"deadline,omitempty"`
	Lapsed    election.Term    `json:"lapsed,omitempty"`
	Addresses []Status         `json:"addresses,omitempty"`
	Left      int              `json:"left"` // addresses of ours that the kernel has
}

const recordMax = 64 << 10

func send(conn *net.UnixConn, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode a record: %v", err)
	}
	if len(b) > recordMax {
		return fmt.Errorf("cannot send a record of %d bytes: there are too many addresses", len(b))
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	// A frozen peer eventually fills its buffer, and must not block us.
	var errSend error
	err = raw.Control(func(fd uintptr) {
		_, errSend = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	return errors.Join(err, errSend)
}

var errEnd = errors.New("the other side has ended")

func recv(conn *net.UnixConn, buf []byte, v any) error {
	n, err := conn.Read(buf)
	if err != nil || n == 0 {
		return errEnd
	}
	if err := json.Unmarshal(buf[:n], v); err != nil {
		return fmt.Errorf("cannot read a record: %v", err)
	}
	return nil
}

// peerPID returns the process id of the peer from the kernel. The peer must run as the same user.
func peerPID(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var errCred error
	if err := raw.Control(func(fd uintptr) { cred, errCred = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if errCred != nil {
		return 0, errCred
	}
	if int(cred.Uid) != unix.Geteuid() {
		return 0, fmt.Errorf("it runs as user %d", cred.Uid)
	}
	return int(cred.Pid), nil
}
