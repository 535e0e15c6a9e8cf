package process

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The sidecar and its guard talk in records over a Unix socket of type SEQPACKET: each record arrives whole or not at
// all, and the end of the stream tells either side that the other is gone.

type kind uint8

const (
	// From the sidecar.
	kindExtend kind = iota + 1 // a: the new deadline
	kindStop                   // a: when to kill what is left
	kindPing
	kindSignal  // a: the signal to relay to the main process
	kindDetach  // a: keep the tree until then, should there be no deadline
	kindRunning // a: PID of the main process, which somebody else has started in the cgroup
	kindHello   // the first record of a sidecar that adopts
	// From the guard.
	kindStarted // a: PID of the main process; b: abilities; answers the spec, or a hello
	kindRefused // text: why nothing was started
	kindAck     // seq: of the record answered; a: the deadline in force; b: when the guard will kill
	kindExited  // a: wait status; b: cause
	kindKilling // it has begun to kill; a: cause
	kindLeft    // a: how many processes are still there although killed; b: one of them
	kindGone    // a: cause; b: nanoseconds from the instant due to the last process gone
)

// cause is why the guard killed.
type cause int64

const (
	causeNone      cause = iota // it did not: the program ended by itself
	causeStop                   // told to
	causeDeadline               // the deadline passed
	causeOrphan                 // the sidecar is gone, and there is no deadline to wait for
	causeCompanion              // the companion ended by itself
)

// ability is what the guard got of what it asked the kernel for.
type ability int64

const (
	ableRealtime ability = 1 << iota // SCHED_RR
	ableNice                         // not that, but nice -20
	ableLocked                       // memory locked
	ableOOM                          // spared by the OOM killer
	ableCgroup                       // the tree sits in a cgroup that is killed in one stroke
	ableWatchdog                     // the watchdog device is fed
)

const (
	recordHead = 24
	recordMax  = 4096
)

type record struct {
	kind kind
	seq  uint32
	a, b int64
	text string
}

// put writes r into buf, which must hold recordMax bytes, and returns the part used. It does not allocate.
func (r *record) put(buf []byte) []byte {
	buf[0], buf[1], buf[2], buf[3] = byte(r.kind), 0, 0, 0
	binary.LittleEndian.PutUint32(buf[4:], r.seq)
	binary.LittleEndian.PutUint64(buf[8:], uint64(r.a))
	binary.LittleEndian.PutUint64(buf[16:], uint64(r.b))
	n := copy(buf[recordHead:recordMax], r.text)
	return buf[:recordHead+n]
}

// parseRecord allocates only if there is text.
func parseRecord(b []byte) (record, bool) {
	if len(b) < recordHead {
		return record{}, false
	}
	r := record{
		kind: kind(b[0]),
		seq:  binary.LittleEndian.Uint32(b[4:]),
		a:    int64(binary.LittleEndian.Uint64(b[8:])),
		b:    int64(binary.LittleEndian.Uint64(b[16:])),
	}
	if len(b) > recordHead {
		r.text = string(b[recordHead:])
	}
	return r, true
}

// spec is what a guard is told at its start. It travels through a memory file, because it holds the environment of the
// program, secrets included, and may be larger than a record; neither arguments nor the guard's own environment would do.
type spec struct {
	mode       mode
	argv       []string
	env        []string
	dir        string
	uid        int64 // -1: as the guard
	gid        int64
	groups     []string // numbers
	stopSignal int64
	deadline   int64
	cgroup     string // directory, "" if there is none
	tree       string // the mark of the tree
	stateDir   string // "" if nobody can adopt
	// File descriptors; -1 where absent.
	sinkFD, listenFD int64
	outFD, errFD     int64
	// The companion, if there is one.
	companion, companionEnv []string
	inputFD                 int64
	// Of the script driver.
	stop, status, kill []string
	pidFile            string
	startBy            int64 // when a start command must have ended
	// The watchdog device.
	watchdog        int64
	watchdogPath    string
	watchdogTimeout int64
}

// statusUnknown is what is reported for a process that was not the guard's child: as if it had been killed by signal 0x7e.
const statusUnknown = 0x7e

// mode is the kind of program that a guard keeps.
type mode int64

const (
	modeExec   mode = iota // argv is the program
	modeScript             // argv starts the program and ends
	modeUnit               // the program lives in a cgroup that somebody else (systemd) fills
)

// codec encodes and decodes spec with one description of its fields, so that the two can't differ.
type codec struct {
	buf     []byte
	reading bool
	err     error
}

var errSpecShort = errors.New("it ends early")

func (c *codec) number(v *int64) {
	if !c.reading {
		c.buf = binary.LittleEndian.AppendUint64(c.buf, uint64(*v))
		return
	}
	if len(c.buf) < 8 {
		c.err, c.buf = errSpecShort, nil
		return
	}
	*v = int64(binary.LittleEndian.Uint64(c.buf))
	c.buf = c.buf[8:]
}

func (c *codec) text(v *string) {
	n := int64(len(*v))
	c.number(&n)
	if !c.reading {
		c.buf = append(c.buf, *v...)
		return
	}
	if n < 0 || n > int64(len(c.buf)) {
		c.err, c.buf = errSpecShort, nil
		return
	}
	*v = string(c.buf[:n])
	c.buf = c.buf[n:]
}

func (c *codec) texts(v *[]string) {
	n := int64(len(*v))
	c.number(&n)
	if c.reading {
		if n < 0 || n > int64(len(c.buf)) { // each takes at least 8 bytes
			c.err, c.buf = errSpecShort, nil
			return
		}
		*v = make([]string, n)
	}
	for i := range *v {
		c.text(&(*v)[i])
	}
}

func (s *spec) fields(c *codec) {
	c.number((*int64)(&s.mode))
	c.texts(&s.argv)
	c.texts(&s.env)
	c.text(&s.dir)
	c.number(&s.uid)
	c.number(&s.gid)
	c.texts(&s.groups)
	c.number(&s.stopSignal)
	c.number(&s.deadline)
	c.text(&s.cgroup)
	c.text(&s.tree)
	c.text(&s.stateDir)
	for _, fd := range []*int64{&s.sinkFD, &s.listenFD, &s.outFD, &s.errFD} {
		c.number(fd)
	}
	c.texts(&s.companion)
	c.texts(&s.companionEnv)
	c.number(&s.inputFD)
	c.texts(&s.stop)
	c.texts(&s.status)
	c.texts(&s.kill)
	c.text(&s.pidFile)
	c.number(&s.startBy)
	c.number(&s.watchdog)
	c.text(&s.watchdogPath)
	c.number(&s.watchdogTimeout)
}

func (s *spec) encode() []byte {
	var c codec
	s.fields(&c)
	return c.buf
}

func decodeSpec(b []byte) (*spec, error) {
	var s spec
	c := codec{buf: b, reading: true}
	s.fields(&c)
	if c.err != nil {
		return nil, fmt.Errorf("cannot read what to guard: %v", c.err)
	}
	return &s, nil
}
