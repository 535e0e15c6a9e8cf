package haproxy

import (
	"bytes"
	"context"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/tanist/tanist/election"
)

// Change is the input of a hook. Its arguments, after the hook's own, are the old URL, the new URL,
// the term and the reason, with "-" for an absent one. Its environment is TANIST_EVENT (serving,
// vacant), TANIST_CLUSTER, TANIST_OLD, TANIST_OLD_URL, TANIST_NEW, TANIST_NEW_URL, TANIST_TERM,
// TANIST_REASON. The event vacant has no new controller. The event serving has as old the
// controller that served last, and follows once the new one's startup port has accepted a
// connection.
type Change struct {
	Cluster        string
	Old, OldURL    string
	New, NewURL    string
	Term           election.Term
	Reason         string
	beforeOverflow int // number of changes that were merged into this one
}

func (c Change) event() string {
	if c.New == "" {
		return "vacant"
	}
	return "serving"
}

// hookBacklog is how many changes may wait. Beyond it the two newest changes of a cluster are
// merged: only the final state matters.
const hookBacklog = 256

// merge combines two changes of the same cluster.
func merge(last, next Change) (Change, bool) {
	if last.Cluster != next.Cluster {
		return next, false
	}
	next.Old, next.OldURL, next.beforeOverflow = last.Old, last.OldURL, last.beforeOverflow+1
	return next, true
}

// tell runs all hooks for a change. When the run ends, waiting changes are dropped: the next run
// reports the state at that time.
func (r *run) tell(c Change) {
	if c.beforeOverflow > 0 {
		r.log.Warn().Str("cluster", c.Cluster).Int("left_out", c.beforeOverflow).Msg("hooks are too slow; skipped some changes")
	}
	for i, h := range r.cfg.Hooks {
		if r.ctx.Err() != nil {
			return
		}
		r.one(r.ctx, i, h, c)
	}
}

// one runs one hook. A failed hook is logged and does not stop the next ones.
func (r *run) one(ctx context.Context, i int, h Hook, c Change) {
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
	cmd.Env = []string{
		"TANIST_EVENT=" + c.event(), "TANIST_CLUSTER=" + c.Cluster, "TANIST_OLD=" + c.Old, "TANIST_OLD_URL=" + c.OldURL,
		"TANIST_NEW=" + c.New, "TANIST_NEW_URL=" + c.NewURL, "TANIST_TERM=" + term, "TANIST_REASON=" + c.Reason,
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	began := time.Now()
	var buffer bytes.Buffer
	cmd.Stdout, cmd.Stderr = &buffer, &buffer
	err := r.cfg.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	out := buffer.Bytes()
	e := r.log.Info() //nolint:zerologlint // sent at the end
	if err != nil {
		e = r.log.Error() //nolint:zerologlint // sent at the end
		if ctx.Err() == context.DeadlineExceeded {
			e = e.Bool("timed_out", true)
		}
		e = e.Str("error", err.Error()).Str("output", oneLine(string(out), 300))
	}
	e.Str("cluster", c.Cluster).Int("hook", i).Str("event", c.event()).Str("term", term).Dur("took_ms", time.Since(began)).Msg("hook ran")
}

// hook reports to the hooks that now serves; nil: nobody.
func (r *run) hook(t *route, now *election.Target) {
	if now == nil && t.serving == nil || now != nil && t.serving != nil && *now == *t.serving {
		return
	}
	c := Change{Cluster: t.cl.Name, Term: t.filter.Seen(), Reason: t.reason}
	if t.last != nil {
		c.Old, c.OldURL = t.last.Controller, t.last.URL
	}
	if now != nil {
		c.New, c.NewURL = now.Controller, now.URL
		t.last = now
	}
	t.serving = now
	if r.hooks != nil {
		r.hooks.Add(c)
	}
}
