package guard

import (
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// spool hands the program's output on to the sidecar, inside the guard. The program never waits for
// it: what the sidecar does not take in time is kept, up to spoolSize, and then the oldest is
// dropped and counted. It outlives the sidecar, so that a program does not die of a closed pipe
// when the sidecar does.
type spool struct {
	// read end of the program's pipe; write end of the sidecar's pipe, -1 if there is none
	from, to   int
	programEnd int // what the program writes to; closed once it runs
	ring       []byte
	start, n   int
	dropped    int
	ended      bool // nobody can write any more
	note       []byte
}

const spoolSize = 256 << 10

func newSpool(to int) (*spool, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("cannot make a pipe for the output: %v", err)
	}
	// Room for bursts while the guard is not running. More than the limit of an unprivileged user
	// fails, harmlessly.
	_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, 1<<20)
	if err := unix.SetNonblock(p[0], true); err != nil {
		return nil, fmt.Errorf("cannot prepare the pipe of the output: %v", err)
	}
	if err := unix.SetNonblock(to, true); err != nil {
		return nil, fmt.Errorf("cannot prepare the pipe of the output: %v", err)
	}
	return &spool{from: p[0], to: to, programEnd: p[1], ring: make([]byte, spoolSize), note: make([]byte, 0, 64)}, nil
}

// lost is called when the sidecar is gone.
func (r *spool) lost() {
	if r.to >= 0 {
		unix.Close(r.to)
	}
	r.to = -1
}

// adopt gives the spool a new sidecar to write to.
func (r *spool) adopt(to int) {
	r.lost()
	_ = unix.SetNonblock(to, true)
	r.to = to
}

// pump moves what can be moved now, a bounded amount.
func (r *spool) pump() {
	r.fill()
	r.flush()
}

// fill reads what the program wrote, up to the size of the ring.
func (r *spool) fill() {
	for range 4 {
		if r.ended {
			return
		}
		if r.n == len(r.ring) {
			r.flush()
		}
		if r.n == len(r.ring) {
			cut := len(r.ring) / 4
			r.start, r.n = (r.start+cut)%len(r.ring), r.n-cut
			r.dropped += cut
		}
		end := (r.start + r.n) % len(r.ring)
		room := min(len(r.ring)-r.n, len(r.ring)-end)
		n, err := unix.Read(r.from, r.ring[end:end+room])
		if n == 0 && err == nil {
			r.ended = true
			unix.Close(r.from)
			r.from = -1
			return
		}
		if err != nil {
			return
		}
		r.n += n
	}
}

// flush writes to the sidecar what it takes.
func (r *spool) flush() {
	if r.to < 0 {
		return
	}
	if r.dropped > 0 {
		r.note = append(r.note[:0], "\n[tanist: "...)
		r.note = strconv.AppendInt(r.note, int64(r.dropped), 10)
		r.note = append(r.note, " bytes of output dropped]\n"...)
		// whole or not at all: it is shorter than PIPE_BUF
		if n, err := unix.Write(r.to, r.note); err != nil || n < len(r.note) {
			if err == unix.EPIPE {
				r.lost()
			}
			return
		}
		r.dropped = 0
	}
	for r.n > 0 {
		chunk := min(r.n, len(r.ring)-r.start)
		n, err := unix.Write(r.to, r.ring[r.start:r.start+chunk])
		if err != nil {
			if err == unix.EPIPE {
				r.lost()
			}
			return
		}
		r.start, r.n = (r.start+n)%len(r.ring), r.n-n
	}
}

// drain hands on the rest once the tree is gone, as long as the sidecar takes it.
func (r *spool) drain(within time.Duration) {
	until := election.BootClock().Add(within)
	for {
		r.fill()
		r.flush()
		left := until.Sub(election.BootClock())
		if r.ended && r.n == 0 || r.to < 0 || left <= 0 {
			return
		}
		fds := []unix.PollFd{{Fd: int32(r.to), Events: unix.POLLOUT}}
		// all writers are dead, so what is in the pipe is all there is, unless a handle went
		// elsewhere
		if r.n == 0 {
			if r.ended {
				return
			}
			fds[0] = unix.PollFd{Fd: int32(r.from), Events: unix.POLLIN}
			left = 0
		}
		n, err := unix.Poll(fds, int(left.Milliseconds()))
		if r.n == 0 && n == 0 && err == nil {
			return
		}
	}
}
