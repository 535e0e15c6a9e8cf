package wire

import "encoding/binary"

// Busy is what a guard answers a second sidecar.
const Busy = "another sidecar keeps it"

// Late is why a guard starts nothing after its deadline.
const Late = "the lease deadline has passed"

// The sidecar and its guard talk in records over a Unix socket of type SEQPACKET: each record
// arrives whole or not at all, and the end of the stream tells either side that the other is gone.

type Kind uint8

const (
	// From the sidecar.
	KindExtend Kind = iota + 1 // a: the new deadline
	KindStop                   // a: when to kill what is left
	KindPing
	KindSignal  // a: the signal to forward to the main process
	KindDetach  // a: keep the tree until then, should there be no deadline
	KindRunning // a: PID of the main process, which somebody else has started in the cgroup
	KindHello   // the first record of a sidecar that adopts
	// From the guard.
	KindStarted // a: PID of the main process; b: abilities; answers the spec, or a hello
	KindRefused // text: why nothing was started
	// seq: of the record answered; a: the deadline in force; b: when the guard will kill
	KindAck
	KindExited  // a: wait status; b: cause
	KindKilling // it has begun to kill; a: cause
	KindLeft    // a: how many processes are still there although killed; b: one of them; or text
	KindGone    // a: cause; b: nanoseconds from the instant due to the last process gone
	// the killing is done and nothing shows its success; a: until when that is waited for; the
	// deadline is not moved any more
	KindDoubt
	// the guard ends; nothing below it is left, but what the program's own commands say proves
	// nothing; a: cause
	KindUnproven
)

// Cause is why the guard killed.
type Cause int64

const (
	CauseNone      Cause = iota // it did not: the program ended by itself
	CauseStop                   // told to
	CauseDeadline               // the deadline passed
	CauseOrphan                 // the sidecar is gone, and there is no deadline to wait for
	CauseCompanion              // the companion ended by itself
)

// Ability is what the guard got of what it asked the kernel for.
type Ability int64

const (
	AbleRealtime Ability = 1 << iota // SCHED_RR
	AbleNice                         // not that, but nice -20
	AbleLocked                       // memory locked
	AbleOOM                          // spared by the OOM killer
	AbleCgroup                       // the tree sits in a cgroup that is killed in one stroke
	AbleWatchdog                     // the watchdog device is fed
)

const (
	recordHead = 24
	RecordMax  = 4096
)

type Record struct {
	Kind Kind
	Seq  uint32
	A, B int64
	Text string
}

// Put writes r into buf, which must hold recordMax bytes, and returns the part used. It does not
// allocate.
func (r *Record) Put(buf []byte) []byte {
	buf[0], buf[1], buf[2], buf[3] = byte(r.Kind), 0, 0, 0
	binary.LittleEndian.PutUint32(buf[4:], r.Seq)
	binary.LittleEndian.PutUint64(buf[8:], uint64(r.A))
	binary.LittleEndian.PutUint64(buf[16:], uint64(r.B))
	n := copy(buf[recordHead:RecordMax], r.Text)
	return buf[:recordHead+n]
}

// ParseRecord allocates only if there is text.
func ParseRecord(b []byte) (Record, bool) {
	if len(b) < recordHead {
		return Record{}, false
	}
	r := Record{
		Kind: Kind(b[0]),
		Seq:  binary.LittleEndian.Uint32(b[4:]),
		A:    int64(binary.LittleEndian.Uint64(b[8:])),
		B:    int64(binary.LittleEndian.Uint64(b[16:])),
	}
	if len(b) > recordHead {
		r.Text = string(b[recordHead:])
	}
	return r, true
}
