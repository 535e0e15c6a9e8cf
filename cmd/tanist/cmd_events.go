package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

// event is one event of a cluster.
type event struct {
	At    time.Time     `json:"at"` // when it was seen here; for past reigns, when it was recorded
	Event string        `json:"event"`
	Name  string        `json:"name,omitempty"` // of the controller or agent
	Term  election.Term `json:"term,omitempty"`
	Text  string        `json:"text"`
}

func eventsCommand() *cobra.Command {
	var a access
	var follow bool
	var most int
	var output string
	cmd := &cobra.Command{
		Use: "events", Short: "Show past events in plain words; with -f, follow new ones", Args: noArgs,
		Long: "Show past events in plain words: the reigns of the history, the latest last. With -f, continue with every change\n" +
			"from now on, beginning with the present state: controllers, agents, requests, pauses.",
		Example: "  tanist events -c orders.yml -f",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := display{output: output}
			if err := d.check(); err != nil {
				return err
			}
			if most < 0 {
				return exit.Errorf(exit.Usage, "-n %d is negative: give 0 or more", most)
			}
			return a.with(cmd, func(ctx context.Context, s daemon.Store, _ daemon.StoreConfig) error {
				limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
				history, err := operate.ReadHistory(limited, s)
				cancel()
				if err != nil {
					return storeError(err, "cannot read the history")
				}
				out := cmd.OutOrStdout()
				past := pastEvents(history)
				for _, e := range past[max(0, len(past)-most):] {
					if err := e.print(out, output); err != nil {
						return err
					}
				}
				if !follow {
					return nil
				}
				return followEvents(ctx, s, func(e event) error { return e.print(out, output) })
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "follow new events until interrupted")
	cmd.Flags().IntVarP(&most, "lines", "n", 20, "how many past events to show")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table (one line each), json (one object per line) or yaml (one document each)")
	return cmd
}

func (e event) print(out io.Writer, output string) error {
	switch output {
	case "json":
		return json.NewEncoder(out).Encode(e)
	case "yaml":
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if b, err = yaml.JSONToYAML(b); err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "---\n%s", b)
		return err
	default:
		_, err := fmt.Fprintf(out, "%s  %s\n", e.At.Local().Format(time.DateTime), e.Text)
		return err
	}
}

// pastEvents returns the events of the history, oldest first.
func pastEvents(history []election.History) []event {
	var all []event
	for _, h := range slices.Backward(history) {
		text := fmt.Sprintf("%s is active, term %d%s", clean(h.To), h.Term, because(h.Reason))
		if h.Outage > 0 {
			text += fmt.Sprintf(" (outage %s)", millis(h.Outage))
		}
		all = append(all, event{h.When, "serving", h.To, h.Term, text})
		for _, again := range h.Restarts {
			all = append(all, event{again.At, "restarted-in-place", h.To, h.Term, restartWords(h, again)})
		}
		if !h.Ended.IsZero() {
			all = append(all, event{h.Ended, "ended", h.To, h.Term, fmt.Sprintf("%s's reign ended, term %d%s", clean(h.To), h.Term, because(h.EndedBy))})
		}
	}
	return all
}

// restartWords describes a restart of the controller during a reign.
func restartWords(h election.History, again election.Restart) string {
	return fmt.Sprintf("%s was restarted in place, term %d%s (outage %s)", clean(h.To), h.Term, because(strings.TrimPrefix(again.Why, "restart in place ")), millis(again.Outage))
}

// scene is a state to compare with the previous one.
type scene struct {
	snap   election.Snapshot
	agents []election.Agent
	vips   []election.VIPHost
}

// followEvents reports every change until ctx ends.
func followEvents(ctx context.Context, s daemon.Store, tell func(event) error) error {
	f := follower{store: s, hints: s.Watch(ctx)}
	for {
		for _, e := range f.look(ctx) {
			if err := tell(e); err != nil {
				return err
			}
		}
		if !f.wait(ctx) {
			return nil // interrupted: following ends that way
		}
	}
}

// follower turns what it reads into events. It reports a lost store once, and the missed changes
// when the store is back.
type follower struct {
	store daemon.Store
	hints <-chan election.Hint
	last  scene
	away  bool
}

// look returns what has happened since the last look; at first, everything that exists.
func (f *follower) look(ctx context.Context) []event {
	now, err := look(ctx, f.store)
	var events []event
	switch {
	case ctx.Err() != nil:
	case err != nil && !f.away:
		f.away = true
		events = []event{{Event: "store-away", Text: "cannot read the store" + because(err.Error())}}
	case err == nil:
		if f.away {
			f.away = false
			events = []event{{Event: "store-back", Text: "the store is back"}}
		}
		events = append(events, changes(f.last, now)...)
		f.last = now
	}
	return dated(events)
}

// dated returns events that are seen now.
func dated(events []event) []event {
	for i := range events {
		events[i].At = time.Now().UTC()
	}
	return events
}

// wait returns when it is time for the next look, and whether there is one.
func (f *follower) wait(ctx context.Context) bool {
	timer := time.NewTimer(time.Second) // agents and tanist vip have no hints
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-f.hints:
	case <-timer.C:
	}
	return ctx.Err() == nil
}

func look(ctx context.Context, s daemon.Store) (scene, error) {
	ctx, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	snap, err := s.Read(ctx)
	if err != nil {
		return scene{}, err
	}
	agents, err := operate.ReadAgents(ctx, s)
	if err != nil {
		return scene{}, err
	}
	hosts, err := operate.ReadVIPHosts(ctx, s)
	return scene{snap, agents, hosts}, err
}

// changes returns the differences between two moments. It misses what came and went in between.
func changes(old, now scene) []event {
	var all []event
	tell := func(kind, name string, term election.Term, format string, args ...any) {
		all = append(all, event{Event: kind, Name: name, Term: term, Text: fmt.Sprintf(format, args...)})
	}
	requestChanges(old.snap.Request, now.snap.Request, tell)
	switch was, is := old.snap.Pause, now.snap.Pause; {
	case was == nil && is != nil:
		tell("paused", "", 0, "%s paused the cluster: nothing fails over%s", clean(is.By), because(is.Reason))
	case was != nil && is == nil:
		tell("resumed", "", 0, "the pause has ended")
	}
	standbyChanges(old.snap.Standbys, now.snap.Standbys, tell)
	if was, is := old.snap.Dead, now.snap.Dead; is != nil && (was == nil || *was != *is) {
		tell("confirmed-dead", is.Controller, is.Term, "%s confirmed that %s is dead, up to term %d%s", clean(is.By), clean(is.Controller), is.Term, because(is.Reason))
	}
	activeChanges(old.snap, now.snap, tell)
	controllerChanges(old.snap, now.snap, tell)
	vipHostChanges(old.vips, now.vips, tell)
	agentChanges(old.agents, now.agents, tell)
	return all
}

// told is the wording of a change.
type told func(kind, name string, term election.Term, format string, args ...any)

func requestChanges(was, is *election.Request, tell told) {
	switch {
	case is != nil && (was == nil || was.ID != is.ID):
		tell("requested", is.To, is.Term, "%s requested a %s%s", clean(is.By), operate.RequestWords(*is), because(is.Reason))
	case was != nil && is == nil:
		tell("request-done", was.To, was.Term, "the request of %s is closed", clean(was.By))
	}
}

func standbyChanges(was, is election.Standbys, tell told) {
	for _, name := range slices.Sorted(maps.Keys(is)) {
		if was[name] != is[name] {
			tell("standby", name, 0, "%s is %s", clean(name), clean(is[name].Words(name)))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(was)) {
		if _, on := is[name]; !on {
			tell("standby-ended", name, 0, "%s may become active again", clean(name))
		}
	}
}

func activeChanges(old, now election.Snapshot, tell told) {
	was, is := old.Active, now.Active
	if was != nil && (is == nil || is.Term != was.Term) {
		if is == nil && now.Breadcrumb.Term == was.Term && now.Breadcrumb.Clean {
			tell("released", was.Controller, was.Term, "%s released its lease, term %d%s", clean(was.Controller), was.Term, because(now.Breadcrumb.Reason))
		} else if is == nil {
			tell("lost", was.Controller, was.Term, "the lease of %s ended without a release, term %d", clean(was.Controller), was.Term)
		}
	}
	if is == nil || (was != nil && was.Term == is.Term && was.State == is.State) {
		return
	}
	switch is.State {
	case election.StateServing:
		tell("serving", is.Controller, is.Term, "%s is active at %s, term %d%s", clean(is.Controller), clean(is.URL), is.Term, because(is.Reason))
	case election.StateStarting:
		tell("acquired", is.Controller, is.Term, "%s acquired the lease, term %d%s", clean(is.Controller), is.Term, because(is.Reason))
	default:
		tell(string(is.State), is.Controller, is.Term, "%s, which holds the lease, is %s, term %d", clean(is.Controller), clean(string(is.State)), is.Term)
	}
}

func controllerChanges(old, now election.Snapshot, tell told) {
	before, after := map[string]election.Controller{}, map[string]election.Controller{}
	for _, c := range old.Controllers {
		before[c.Name] = c
	}
	for _, c := range now.Controllers {
		after[c.Name] = c
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if _, here := after[name]; !here {
			tell("left", name, 0, "the sidecar of %s left", clean(name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		was, known := before[name]
		is := after[name]
		switch {
		case !known: // even for a holder: a new sidecar is worth an event
			tell("joined", name, 0, "the sidecar of %s joined: %s%s", clean(name), clean(string(is.State)), because(is.Reason))
		case was.Incarnation != is.Incarnation:
			tell("restarted", name, 0, "the sidecar of %s was restarted: %s%s", clean(name), clean(string(is.State)), because(is.Reason))
		case ofHolder(is.State): // already reported from the role key
		case was.State != is.State:
			tell(string(is.State), name, 0, "%s: %s → %s%s", clean(name), clean(string(was.State)), clean(string(is.State)), because(is.Reason))
		case was.State == is.State && was.Reason != is.Reason && is.Reason != "":
			tell(string(is.State), name, 0, "%s is %s%s", clean(name), clean(string(is.State)), because(is.Reason))
		}
		virtualIPChanges(name, was.VirtualIPs, is.VirtualIPs, tell)
		if known && was.Health != is.Health && is.Health != "-" {
			tell("health", name, 0, "the health of %s: %s", clean(name), clean(is.Health))
		}
	}
}

// ofHolder reports whether a state is one of the lease's holder.
func ofHolder(s election.State) bool {
	return s == election.StateStarting || s == election.StateServing || s == election.StateStopping
}

func agentChanges(old, now []election.Agent, tell told) {
	before := map[string]election.Agent{}
	for _, a := range old {
		before[a.Name] = a
	}
	for _, is := range now {
		was, known := before[is.Name]
		delete(before, is.Name)
		switch {
		case !known:
			tell("agent", is.Name, is.Term, "agent %s joined: %s%s", clean(is.Name), clean(is.State), because(is.Reason))
		case is.Follows != was.Follows && is.Follows != "":
			tell("agent", is.Name, is.Term, "agent %s follows %s, term %d: %s", clean(is.Name), clean(is.Follows), is.Term, clean(is.State))
		case is.State != was.State:
			tell("agent", is.Name, is.Term, "agent %s: %s → %s%s", clean(is.Name), clean(was.State), clean(is.State), because(is.Reason))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		tell("agent", name, 0, "agent %s left", clean(name))
	}
}
