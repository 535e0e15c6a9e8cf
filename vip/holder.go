package vip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// Config describes a [Holder].
type Config struct {
	Addresses []Address
	// Socket is the path at which the keeper of a later process finds this one's, to take over from
	// it. If empty, nothing can take over what is held when this process ends, and it is held until
	// the deadline.
	Socket string
	// Self is the binary of the keeper; empty: this one. Args are its arguments; they must lead to
	// [Keep].
	Self string
	Args []string
	// Changed is called whenever the state of an address has changed. It must not block.
	Changed func([]Status)
	Log     zerolog.Logger
}

const (
	startWithin  = 5 * time.Second
	answerWithin = 500 * time.Millisecond // after that a keeper counts as frozen and is replaced
	answerCheck  = 50 * time.Millisecond  // interval of the check while an answer is due
	restartAfter = 100 * time.Millisecond
	restartMost  = 2 * time.Second
)

// Holder holds addresses through a keeper. Its methods are safe for concurrent use.
type Holder struct {
	cfg  Config
	lock *os.File // nil without a socket
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	keeper  *running // nil between two keepers
	want    want
	last    report
	changed chan struct{} // closed and replaced with every report
	poke    chan struct{} // a call waits for an answer
}

// want is what the keeper should do.
type want struct {
	told     bool // an order was given; until then, what an earlier keeper held stays as it is
	looking  bool
	holding  bool
	term     election.Term
	deadline election.Instant
}

// running is one keeper process.
type running struct {
	conn   *net.UnixConn
	cmd    *exec.Cmd
	seq    uint64        // of the last order
	wanted uint64        // of the last order other than extend
	acked  uint64        // of the last answered order
	ended  chan struct{} // its end of the socket is closed
}

// Start starts a keeper and returns once it has answered. It leaves what an earlier keeper held
// until its deadline or the first Hold or Release.
func Start(ctx context.Context, cfg Config) (*Holder, error) {
	if err := Permitted(); err != nil {
		return nil, err
	}
	if len(cfg.Socket) > 100 {
		return nil, fmt.Errorf("cannot use %s for the virtual IP's socket: the path is longer than 100 characters: choose a shorter state_dir", cfg.Socket)
	}
	lock, err := lockSocket(cfg.Socket)
	if err != nil {
		return nil, err
	}
	h := &Holder{cfg: cfg, lock: lock, done: make(chan struct{}), changed: make(chan struct{}), poke: make(chan struct{}, 1)}
	limited, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	r, err := h.spawn(limited)
	if err != nil {
		h.unlock()
		return nil, err
	}
	around, stop := context.WithCancel(context.WithoutCancel(ctx))
	h.stop = stop
	go h.run(around, r)
	return h, nil
}

// Close detaches the keeper, which ends once it holds nothing, at the deadline at the latest.
func (h *Holder) Close() {
	h.stop()
	<-h.done
	h.unlock()
}

// ErrHeld is the error of Start if another live process has started a keeper with the same socket.
var ErrHeld = errors.New("another live process holds them")

// lockSocket prevents a takeover from a live process: only the end of a process releases the lock.
func lockSocket(path string) (*os.File, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the virtual IPs: %v", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("cannot hold the virtual IPs: %w (%s.lock): end it, or give this one another name", ErrHeld, path)
		}
		return nil, fmt.Errorf("cannot lock the virtual IPs: %v", err)
	}
	return f, nil
}

func (h *Holder) unlock() {
	if h.lock != nil {
		h.lock.Close()
	}
}

// Look asks the network for holders of the addresses, so that Hold need not wait for an answer. It
// does not block.
func (h *Holder) Look() {
	h.tell(order{Op: orderLook}, func(w *want) { w.told, w.looking = true, true })
}

// Hold adds the addresses for a term until deadline. It returns once that is done, or known to be
// impossible for now; then the keeper keeps retrying. Hold refuses a term whose deadline has
// passed.
func (h *Holder) Hold(ctx context.Context, term election.Term, deadline election.Instant) error {
	h.tell(order{Op: orderHold, Term: term, Deadline: deadline}, func(w *want) {
		*w = want{told: true, holding: true, term: term, deadline: deadline}
	})
	return h.await(ctx, func(r report, by *running) error {
		switch {
		case r.Seq == by.wanted && r.Err != "":
			return errors.New(r.Err)
		case !r.Holding:
			return fmt.Errorf("cannot hold the addresses for term %d: the deadline of term %d has passed", term, r.Lapsed)
		case r.Term != term: // a later report has replaced the refusal
			return fmt.Errorf("cannot hold the addresses for term %d: they are held for term %d", term, r.Term)
		}
		for _, s := range r.Addresses {
			switch s.State {
			case StateAbsent:
				return errWait // the network is being asked
			case StateFailed, StateForeign:
				return errors.New(s.Why)
			}
		}
		return nil
	})
}

// Extend moves the deadline of what is held. It does not block. It does not move a deadline that
// has passed.
func (h *Holder) Extend(deadline election.Instant) {
	h.mu.Lock()
	term, holding := h.want.term, h.want.holding
	h.mu.Unlock()
	if holding {
		h.tell(order{Op: orderExtend, Term: term, Deadline: deadline}, func(w *want) {
			if election.BootClock() < w.deadline { // a passed deadline stays, even for a later keeper
				w.deadline = max(w.deadline, deadline)
			}
		})
	}
}

// Release removes the addresses. It returns nil once this host has none of them: either the keeper
// reported so, or the lifetime in the kernel is over.
func (h *Holder) Release(ctx context.Context) error {
	h.mu.Lock()
	over := h.want.deadline
	h.mu.Unlock()
	h.tell(order{Op: orderRelease}, func(w *want) { *w = want{told: true} })
	err := h.await(ctx, func(r report, _ *running) error {
		if r.Holding || r.Left > 0 {
			return errWait
		}
		return nil
	})
	if err != nil && over != 0 && over != election.Never && election.BootClock() > over.Add(lifeMargin+time.Second) {
		return nil
	}
	return err
}

// Statuses returns the last known state of every address.
func (h *Holder) Statuses() []Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.last.Addresses)
}

// Holding reports whether the keeper holds the addresses.
func (h *Holder) Holding() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last.Holding
}

// Wrong returns the problems of the addresses on this host: while they are held, why users can't
// reach one here; otherwise, what would prevent taking one.
func (h *Holder) Wrong() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keeper == nil {
		return errors.New("the virtual IP's keeper is not running")
	}
	var all []string
	for _, s := range h.last.Addresses {
		if s.Why != "" && s.State != StateContested {
			all = append(all, fmt.Sprintf("%s: %s", s.Prefix.Addr(), s.Why))
		}
	}
	if len(all) > 0 {
		return errors.New(strings.Join(all, "; "))
	}
	return nil
}

// errWait makes await wait for the next report.
var errWait = errors.New("the virtual IP's keeper did not answer in time")

// await passes every report to judge until judge returns something other than errWait. A report
// from before the keeper, perhaps a new one, knew what is wanted does not count. Meanwhile the keeper
// is asked again and again, because one that froze after it had answered would owe nothing, and
// would not be replaced.
func (h *Holder) await(ctx context.Context, judge func(report, *running) error) error {
	ask := time.NewTicker(answerWithin)
	defer ask.Stop()
	for {
		h.mu.Lock()
		err, changed := errWait, h.changed
		if h.keeper != nil && h.keeper.acked >= h.keeper.wanted {
			err = judge(h.last, h.keeper)
		}
		h.mu.Unlock()
		if !errors.Is(err, errWait) {
			return err
		}
		select {
		case <-changed:
		case <-ask.C:
			h.ask()
		case <-ctx.Done():
			return errWait
		}
	}
}

// ask sends an order that changes nothing, for the sake of its answer, unless one is due.
func (h *Holder) ask() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.keeper; r != nil && r.acked == r.seq {
		h.send(r, order{Op: orderExtend, Term: h.want.term, Deadline: h.want.deadline})
	}
}

// tell changes what is wanted and sends an order. If there is no keeper, the next one learns what is
// wanted.
func (h *Holder) tell(o order, change func(*want)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(&h.want)
	if h.keeper != nil {
		h.send(h.keeper, o)
	}
}

// send sends an order. The caller holds the mutex.
func (h *Holder) send(r *running, o order) {
	if r.acked == r.seq {
		select {
		case h.poke <- struct{}{}:
		default:
		}
	}
	r.seq++
	o.Seq = r.seq
	if o.Op != orderExtend {
		r.wanted = r.seq
	}
	_ = send(r.conn, o) // an unsent order gets no answer, so the keeper is replaced
}

// run supervises the keepers until ctx ends.
func (h *Holder) run(ctx context.Context, r *running) {
	defer close(h.done)
	for r != nil {
		err := h.watch(ctx, r)
		h.mu.Lock()
		h.keeper = nil
		h.mu.Unlock()
		_ = r.conn.Close()
		if ctx.Err() != nil {
			return
		}
		_ = r.cmd.Process.Kill() // if it still runs, it is of no use
		h.cfg.Log.Warn().Err(err).Msg("replacing the virtual IP's keeper")
		r = h.again(ctx)
	}
}

// again starts the next keeper. It returns nil when ctx has ended.
func (h *Holder) again(ctx context.Context) *running {
	for wait := restartAfter; ctx.Err() == nil; wait = min(2*wait, restartMost) {
		limited, cancel := context.WithTimeout(ctx, startWithin)
		r, err := h.spawn(limited)
		cancel()
		if err == nil {
			return r
		}
		if ctx.Err() == nil {
			h.cfg.Log.Error().Err(err).Msg("cannot start the virtual IP's keeper; retrying")
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// watch returns once a keeper has ended or does not answer.
func (h *Holder) watch(ctx context.Context, r *running) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var p patience
	for {
		h.mu.Lock()
		acked, due := r.acked, r.acked < r.seq
		h.mu.Unlock()
		if p.over(election.BootClock(), acked, due) {
			return fmt.Errorf("it did not answer within %v", answerWithin)
		}
		if due {
			timer.Reset(answerCheck)
		} else {
			timer.Reset(time.Hour)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.ended:
			return errors.New("it has ended")
		case <-h.poke:
		case <-timer.C:
		}
	}
}

// patience measures how long a keeper has owed an answer. It counts only time during which this
// process ran: if both were frozen, the keeper is as good as before, and the first to see that a
// deadline has passed.
type patience struct {
	acked uint64           // the answer that the time counts from
	spent time.Duration    // counted since then
	seen  election.Instant // last check; 0: nothing was due
}

// over reports whether the keeper has owed an answer for too long. It is called every answerCheck
// while one is due; a longer interval means that this process did not run.
func (p *patience) over(now election.Instant, acked uint64, due bool) bool {
	switch {
	case !due:
		*p = patience{}
		return false
	case p.seen == 0 || acked != p.acked:
		*p = patience{acked: acked, seen: now}
		return false
	}
	p.spent += min(now.Sub(p.seen), answerCheck)
	p.seen = now
	return p.spent >= answerWithin
}

// spawn starts a keeper and sends it what is wanted.
func (h *Holder) spawn(ctx context.Context) (_ *running, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot start the virtual IP's keeper: %v", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("cannot start the virtual IP's keeper: %v", err)
	}
	r := &running{conn: conn.(*net.UnixConn), ended: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = r.conn.Close()
		}
	}()
	// Not CommandContext: the keeper must outlive this process.
	r.cmd = exec.Command(cmp.Or(h.cfg.Self, "/proc/self/exe"), h.cfg.Args...) //nolint:noctx // see above
	r.cmd.Dir, r.cmd.Env, r.cmd.Stderr = "/", []string{"GOMAXPROCS=2", "GOTRACEBACK=single"}, os.Stderr
	r.cmd.ExtraFiles = []*os.File{theirs}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() != 0 {
		r.cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the virtual IP's keeper: %v", err)
	}
	go func() { _ = r.cmd.Wait() }() // its end shows on the socket
	theirs.Close()

	if err := send(r.conn, order{Seq: 1, Op: orderBegin, Addresses: h.cfg.Addresses, Socket: h.cfg.Socket}); err != nil {
		return nil, fmt.Errorf("cannot start the virtual IP's keeper: %v", err)
	}
	r.seq, r.acked = 1, 1
	interrupt := context.AfterFunc(ctx, func() { _ = r.conn.SetReadDeadline(time.Unix(1, 0)) })
	var begun report
	err = recv(r.conn, make([]byte, recordMax), &begun)
	if !interrupt() {
		err = errors.New("it did not answer")
	}
	if err == nil && begun.Err != "" {
		err = errors.New(begun.Err)
	}
	if err != nil {
		_ = r.cmd.Process.Kill()
		return nil, fmt.Errorf("cannot start the virtual IP's keeper: %v", err)
	}
	h.mu.Lock()
	h.keeper = r
	h.take(r, begun)
	switch w := h.want; {
	case !w.told:
	case w.holding:
		h.send(r, order{Op: orderHold, Term: w.term, Deadline: w.deadline})
	case w.looking:
		h.send(r, order{Op: orderLook})
	default:
		h.send(r, order{Op: orderRelease})
	}
	h.mu.Unlock()
	h.tellChanged()
	go h.read(r)
	return r, nil
}

// take processes a report. The caller holds the mutex.
func (h *Holder) take(r *running, p report) {
	if p.Seq > 0 {
		r.acked = max(r.acked, p.Seq)
	}
	h.last = p
	close(h.changed)
	h.changed = make(chan struct{})
}

// read processes the keeper's reports until the keeper ends.
func (h *Holder) read(r *running) {
	defer close(r.ended)
	buf := make([]byte, recordMax)
	for {
		var p report
		if recv(r.conn, buf, &p) != nil {
			return
		}
		h.mu.Lock()
		current := h.keeper == r
		if current {
			h.take(r, p)
		}
		h.mu.Unlock()
		if current {
			h.tellChanged()
		}
	}
}

func (h *Holder) tellChanged() {
	if h.cfg.Changed != nil {
		h.cfg.Changed(h.Statuses())
	}
}
