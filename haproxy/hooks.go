package haproxy

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Change is what a hook is told. As arguments, after its own: the old URL, the new URL, the term, the reason, "-" for
// what there is none of. As environment: TANIST_EVENT (serving, vacant), TANIST_CLUSTER, TANIST_OLD, TANIST_OLD_URL,
// TANIST_NEW, TANIST_NEW_URL, TANIST_TERM, TANIST_REASON. Event vacant has no new; event serving has as old whoever served
// last, and comes after the new one's startup port accepted a connection.
type Change struct {
	Cluster        string
	Old, OldURL    string
	New, NewURL    string
	Term           election.Term
	Reason         string
	beforeOverflow int // how many changes were left out between Old and New
}

func (c Change) event() string {
	if c.New == "" {
		return "vacant"
	}
	return "serving"
}

// hookQueue runs hooks in order, one at a time, beside everything else.
type hookQueue struct {
	hooks []Hook
	log   zerolog.Logger

	mu      sync.Mutex
	pending []Change
	wake    chan struct{}
}

// hookBacklog is how many changes may wait. Beyond it, the two newest of a cluster become one: what counts in the end is
// where it ends.
const hookBacklog = 256

func newHookQueue(hooks []Hook, log zerolog.Logger) *hookQueue {
	return &hookQueue{hooks: hooks, log: log, wake: make(chan struct{}, 1)}
}

func (q *hookQueue) add(c Change) {
	q.mu.Lock()
	if n := len(q.pending); n >= hookBacklog && q.pending[n-1].Cluster == c.Cluster {
		last := q.pending[n-1]
		c.Old, c.OldURL, c.beforeOverflow = last.Old, last.OldURL, last.beforeOverflow+1
		q.pending[n-1] = c
	} else {
		q.pending = append(q.pending, c)
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *hookQueue) next() (Change, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 {
		return Change{}, false
	}
	c := q.pending[0]
	q.pending = q.pending[1:]
	return c, true
}

func (q *hookQueue) run(ctx context.Context) {
	for {
		for c, ok := q.next(); ok && ctx.Err() == nil; c, ok = q.next() {
			if c.beforeOverflow > 0 {
				q.log.Warn().Str("cluster", c.Cluster).Int("left_out", c.beforeOverflow).Msg("hooks are too slow; changes were left out")
			}
			for i, h := range q.hooks {
				q.one(ctx, i, h, c)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
	}
}

// one runs one hook. A hook that fails is logged; the next ones run all the same.
func (q *hookQueue) one(ctx context.Context, i int, h Hook, c Change) {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	term := strconv.FormatUint(uint64(c.Term), 10)
	args := append(append([]string(nil), h.Command[1:]...), dash(c.OldURL), dash(c.NewURL), term, dash(c.Reason))
	cmd := exec.CommandContext(ctx, h.Command[0], args...)
	cmd.Env = append(os.Environ(),
		"TANIST_EVENT="+c.event(), "TANIST_CLUSTER="+c.Cluster, "TANIST_OLD="+c.Old, "TANIST_OLD_URL="+c.OldURL,
		"TANIST_NEW="+c.New, "TANIST_NEW_URL="+c.NewURL, "TANIST_TERM="+term, "TANIST_REASON="+c.Reason)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	began := time.Now()
	out, err := cmd.CombinedOutput()
	e := q.log.Info() //nolint:zerologlint // sent at the end
	if err != nil {
		e = q.log.Error() //nolint:zerologlint // sent at the end
		if ctx.Err() == context.DeadlineExceeded {
			e = e.Bool("timed_out", true)
		}
		e = e.Str("error", err.Error()).Str("output", oneLine(string(out), 300))
	}
	e.Str("cluster", c.Cluster).Int("hook", i).Str("event", c.event()).Str("term", term).Dur("took_ms", time.Since(began)).Msg("hook ran")
}

// hook tells the hooks that now is what serves; nil: nobody.
func (r *run) hook(f *follower, now *target) {
	if now == nil && f.serving == nil || now != nil && f.serving != nil && *now == *f.serving {
		return
	}
	if r.hooks == nil {
		f.serving = now
		return
	}
	c := Change{Cluster: f.cl.Name, Term: f.term, Reason: f.reason}
	if f.last != nil {
		c.Old, c.OldURL = f.last.controller, f.last.url
	}
	if now != nil {
		c.New, c.NewURL = now.controller, now.url
		f.last = now
	}
	f.serving = now
	r.hooks.add(c)
}
