package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

func drillCommand() *cobra.Command {
	var a access
	d := drill{}
	var at string
	var v display
	cmd := &cobra.Command{
		Use: "drill [--to NAME]", Short: "Move the active as an exercise, judge the takeover, and report it", Args: noArgs,
		Long: "Move the active as an exercise, judge the takeover, and report it. It is a planned move that is announced in the store (list, events,\n" +
			"history) as a drill. The verdict is that the one that was foreseen took over, that the reign before ended clean, that the outage was\n" +
			"no longer than --max-outage, that every agent followed, and that the one before is ready to take over again. --back moves the\n" +
			"active back, with the same verdict. For cron: -y, and -o json for the report.\n" +
			"Exit codes: 0 passed, 1 failed or refused, 3 nobody is active, 75 still in progress when --timeout ran out.",
		Example: "  tanist drill -c orders.yml --max-outage 5s --back\n  tanist drill -c orders.yml --at 02:30 --to ctl-b -y -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := v.check(); err != nil {
				return err
			}
			if err := atTime(at, &d.at); err != nil {
				return err
			}
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				d.reading, d.cmd, d.out, d.report = r, cmd, cmd.OutOrStdout(), io.Discard
				if v.output == "table" {
					d.report = d.out
				}
				verdict := d.run(ctx)
				if v.output == "table" || len(d.moves) == 0 {
					return verdict
				}
				return errors.Join(v.show(ctx, d.out, func() (any, func(io.Writer), error) { return d.moves, nil, nil }), verdict)
			})
		},
	}
	a.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&d.to, "to", "", "the target controller (default: any that is ready)")
	f.StringVar(&at, "at", "", "when: 15:04, '2006-01-02 15:04', an RFC 3339 time, or +45m; the command waits (default: now)")
	f.DurationVar(&d.limit, "max-outage", 10*time.Second, "a longer outage fails the drill")
	f.BoolVar(&d.back, "back", false, "move the active back afterwards")
	f.StringVar(&d.reason, "reason", "", "why, for the history")
	f.BoolVarP(&d.yes, "yes", "y", false, "do not ask for confirmation")
	f.StringVarP(&v.output, "output", "o", "table", "table, json or yaml")
	f.DurationVar(&d.timeout, "timeout", 2*time.Minute, "how long to wait for each takeover, and for what follows it")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeControllers) // the flag is there
	return cmd
}

// drill is an exercise.
type drill struct {
	reading
	cmd         *cobra.Command
	out, report io.Writer

	to, reason string
	at         time.Time
	limit      time.Duration
	back, yes  bool
	timeout    time.Duration
	moves      []drilled
}

// drilled is the report of one takeover.
type drilled struct {
	Cluster string          `json:"cluster"`
	From    string          `json:"from"`
	To      string          `json:"to"`
	Term    election.Term   `json:"term"`
	At      time.Time       `json:"at"` // when it served
	Outage  election.Millis `json:"outage_ms"`
	Passed  bool            `json:"passed"`
	Checks  []drillCheck    `json:"checks"`
}

// drillCheck is one part of the verdict.
type drillCheck struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	What   string `json:"what"`
}

func (d *drill) run(ctx context.Context) error {
	first := d.snap.Active
	target, err := operate.Targets(d.snap, d.to)
	if err != nil {
		return err
	}
	if !d.yes {
		then := ""
		if !d.at.IsZero() {
			then = fmt.Sprintf(" at %s, in %v", d.at.Format(time.DateTime), time.Until(d.at).Round(time.Second))
		}
		question := fmt.Sprintf("This stops %s's controller and starts %s's%s, as a drill. Continue? [y/N]", clean(first.Controller), clean(target), then)
		if err := confirm(ctx, d.cmd.InOrStdin(), d.out, question, "y", "yes"); err != nil {
			return err
		}
		if !d.at.IsZero() && !d.at.After(time.Now()) {
			return passed(d.at)
		}
	}
	err = d.move(ctx, d.to, d.at)
	if err == nil && d.back {
		if d.snap, err = read(ctx, d.store); err == nil {
			err = d.move(ctx, first.Controller, time.Time{})
		}
	}
	if err != nil {
		return err
	}
	var failed []string
	for _, m := range d.moves {
		for _, c := range m.Checks {
			if !c.Passed {
				failed = append(failed, c.Name+": "+c.What)
			}
		}
	}
	if len(failed) > 0 {
		return exit.Errorf(exit.Failure, "the drill failed: %s", strings.Join(failed, "; "))
	}
	fmt.Fprintln(d.report, "The drill passed.")
	return nil
}

// exercise is the move of a drill.
type exercise struct {
	operate.Switchover
	after election.Snapshot
}

// Command implements [operate.Verb].
func (e *exercise) Command() string {
	return strings.Replace(e.Switchover.Command(), "switchover", "drill", 1)
}

// Follow implements [operate.Verb]. It waits for a scheduled move, too.
func (e *exercise) Follow(ctx context.Context, c *operate.Cluster, say operate.Say) (err error) {
	refused, wait, r := false, e.Timeout, e.Request()
	if !e.At.IsZero() {
		wait += time.Until(e.At)
	}
	e.after, err = operate.Await(ctx, c.Store, say, wait, "; `tanist cancel` withdraws what has not begun", func(snap election.Snapshot) bool {
		refused = operate.Rejected(snap, r)
		return refused || snap.Active.Serving() && snap.Active.Term > r.Term
	})
	if err == nil && refused {
		err = operate.Errorf(operate.Refused, "%s refused the move: the target is not ready any more; its log has the reason", e.after.Active.Controller)
	}
	return err
}

// move makes one move and judges it.
func (d *drill) move(ctx context.Context, to string, at time.Time) error {
	before := d.snap
	agents, err := d.agents(ctx)
	if err != nil {
		return err
	}
	c := d.operated()
	e := &exercise{Switchover: operate.Switchover{To: to, At: at, Reason: strings.TrimSuffix("drill: "+d.reason, ": "), Timeout: d.timeout}}
	if err := e.Check(ctx, c); err != nil {
		return err
	}
	supposed := before
	supposed.Request, supposed.RequestVer = &election.Request{Op: election.OpSwitchover, To: to, By: c.By, Term: before.Active.Term, For: time.Minute}, before.RequestVer+1
	foreseen := election.Foresee(supposed, timingOf(d.where), d.store.Traits(), election.SupposeRelease)
	if err := carryOutTo(ctx, d.report, d.cmd.ErrOrStderr(), c, e); err != nil {
		return err
	}
	after := e.after
	m := drilled{Cluster: d.cluster, From: before.Active.Controller, To: after.Active.Controller, Term: after.Active.Term, At: after.Active.Since}
	check := func(name string, passed bool, format string, args ...any) {
		m.Checks = append(m.Checks, drillCheck{name, passed, fmt.Sprintf(format, args...)})
	}
	check("target", slices.Contains(foreseen.Next, m.To), "%s took over, %s was foreseen", m.To, foreseen.Words())
	d.judge(ctx, &m, agents, check)
	m.Passed = !slices.ContainsFunc(m.Checks, func(c drillCheck) bool { return !c.Passed })
	d.moves = append(d.moves, m)
	fmt.Fprintf(d.report, "%s → %s, term %d, outage %s\n", clean(m.From), clean(m.To), m.Term, cmp.Or(millis(m.Outage), "-"))
	for _, c := range m.Checks {
		mark := "✓"
		if !c.Passed {
			mark = "✗"
		}
		fmt.Fprintf(d.report, "  %s %-8s %s\n", mark, c.Name, clean(c.What))
	}
	return nil
}

// judge waits for what must follow a takeover.
func (d *drill) judge(ctx context.Context, m *drilled, followed []string, check func(string, bool, string, ...any)) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var h election.History
	recorded := d.eventually(ctx, func() bool {
		e, err := d.store.Get(ctx, election.HistoryKey(m.Term))
		return err == nil && e.Version != 0 && json.Unmarshal(e.Value, &h) == nil
	})
	if !recorded {
		check("record", false, "the reign is not in the history within %v", d.timeout)
	} else {
		m.Outage = h.Outage
		outage := time.Duration(float64(h.Outage) * float64(time.Millisecond))
		check("outage", outage <= d.limit, "%s, allowed are %v", millis(h.Outage), d.limit)
		check("clean", h.Clean, "the reign of %s ended clean: %v", m.From, h.Clean)
	}
	var missing []string
	all := d.eventually(ctx, func() bool {
		missing = nil
		agents, err := operate.ReadAgents(ctx, d.store)
		for _, name := range followed {
			i := slices.IndexFunc(agents, func(a election.Agent) bool { return a.Name == name })
			if i < 0 || agents[i].Follows != m.To || agents[i].State != "running" {
				missing = append(missing, name)
			}
		}
		return err == nil && len(missing) == 0
	})
	if len(followed) > 0 {
		what := fmt.Sprintf("all %d follow %s", len(followed), m.To)
		if !all {
			what = fmt.Sprintf("%s did not follow %s within %v", strings.Join(missing, ", "), m.To, d.timeout)
		}
		check("agents", all, "%s", what)
	}
	state := election.State("gone")
	ready := d.eventually(ctx, func() bool {
		snap, err := read(ctx, d.store)
		i := slices.IndexFunc(snap.Controllers, func(c election.Controller) bool { return c.Name == m.From })
		if err == nil && i >= 0 {
			state = snap.Controllers[i].State
		}
		return state == election.StateReady
	})
	check("ready", ready, "%s is %s, to take over again", m.From, state)
}

// eventually asks until it is so, or until ctx ends.
func (d *drill) eventually(ctx context.Context, is func() bool) bool {
	for {
		if is() {
			return true
		}
		timer := time.NewTimer(200 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// agents returns the names of the agents that follow the active now.
func (d *drill) agents(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	all, err := operate.ReadAgents(ctx, d.store)
	if err != nil {
		return nil, storeError(err, "cannot read the agents")
	}
	var names []string
	for _, a := range all {
		if a.Follows == d.snap.Active.Controller && a.State == "running" {
			names = append(names, a.Name)
		}
	}
	return names, nil
}
