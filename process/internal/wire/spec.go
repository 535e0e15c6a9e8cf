package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Watchdog says whether the guard feeds a hardware watchdog.
type Watchdog int

// The choices for a watchdog.
const (
	WatchdogOff      Watchdog = iota
	WatchdogAuto              // if there is one
	WatchdogRequired          // without one, nothing is started
)

// Spec is what a guard is told at its start. It travels through a memory file, because it holds the
// environment of the program, secrets included, and may be larger than a record; neither arguments
// nor the guard's own environment would do.
type Spec struct {
	Mode       mode
	Argv       []string
	Env        []string
	Dir        string
	UID        int64 // -1: as the guard
	GID        int64
	Groups     []string // numbers
	StopSignal int64
	Deadline   int64
	Cgroup     string // directory, "" if there is none
	Tree       string // the mark of the tree
	StateDir   string // "" if nobody can adopt
	// File descriptors; -1 where absent.
	SinkFD, ListenFD int64
	OutFD, ErrFD     int64
	// The companion, if there is one.
	Companion, CompanionEnv []string
	InputFD                 int64
	// Of the script driver.
	Stop, Status, Kill []string
	PIDFile            string
	StartBy            int64 // when a start command must have ended
	// LockFD is the lock that says that a guard lives; -1 without a state directory.
	LockFD int64
	// What the program may do, and how ready the kernel is to end it for its memory.
	NoNewPrivs, OOMScore int64
	// The watchdog device.
	Watchdog        int64
	WatchdogPath    string
	WatchdogTimeout int64
}

// mode is the kind of program that a guard keeps.
type mode int64

const (
	ModeExec   mode = iota // argv is the program
	ModeScript             // argv starts the program and ends
	ModeUnit               // the program lives in a cgroup that somebody else (systemd) fills
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

func (s *Spec) fields(c *codec) {
	c.number((*int64)(&s.Mode))
	c.texts(&s.Argv)
	c.texts(&s.Env)
	c.text(&s.Dir)
	c.number(&s.UID)
	c.number(&s.GID)
	c.texts(&s.Groups)
	c.number(&s.StopSignal)
	c.number(&s.Deadline)
	c.text(&s.Cgroup)
	c.text(&s.Tree)
	c.text(&s.StateDir)
	for _, fd := range []*int64{&s.SinkFD, &s.ListenFD, &s.OutFD, &s.ErrFD} {
		c.number(fd)
	}
	c.texts(&s.Companion)
	c.texts(&s.CompanionEnv)
	c.number(&s.InputFD)
	c.texts(&s.Stop)
	c.texts(&s.Status)
	c.texts(&s.Kill)
	c.text(&s.PIDFile)
	c.number(&s.StartBy)
	c.number(&s.Watchdog)
	c.text(&s.WatchdogPath)
	c.number(&s.WatchdogTimeout)
	c.number(&s.LockFD)
	c.number(&s.NoNewPrivs)
	c.number(&s.OOMScore)
}

func (s *Spec) Encode() []byte {
	var c codec
	s.fields(&c)
	return c.buf
}

func DecodeSpec(b []byte) (*Spec, error) {
	var s Spec
	c := codec{buf: b, reading: true}
	s.fields(&c)
	if c.err != nil {
		return nil, fmt.Errorf("cannot read what to guard: %v", c.err)
	}
	return &s, nil
}
