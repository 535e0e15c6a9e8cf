package operate

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tanist/tanist/election"
)

// Store has the methods of [election.Backend] that operators need.
type Store interface {
	// Read returns the state of the cluster, linearizably.
	Read(ctx context.Context) (election.Snapshot, error)
	// Watch sends a hint after changes, until ctx ends.
	Watch(ctx context.Context) <-chan election.Hint
	election.Keys
}

// StoreTimeout bounds one read or write.
const StoreTimeout = 5 * time.Second

// Cluster is a cluster as an operator sees it.
type Cluster struct {
	Name  string
	Store Store
	By    string            // who asks, for the records
	Snap  election.Snapshot // what Look has read last: what the operator has been shown
}

// Verb is something that an operator asks for. It is used once: Check, Begin, Follow.
type Verb interface {
	// Command returns the equivalent command.
	Command() string
	// Check returns an error if it cannot be carried out as things are in c.Snap.
	Check(ctx context.Context, c *Cluster) error
	// Begin writes what is asked for.
	Begin(ctx context.Context, c *Cluster) error
	// Follow waits until it is done, and reports what happens. It blocks until then or until ctx ends.
	Follow(ctx context.Context, c *Cluster, say Say) error
}

// Say takes a line that tells an operator what happens.
type Say func(line string)

func (say Say) printf(format string, args ...any) { say(fmt.Sprintf(format, args...)) }

// Look reads the cluster.
func (c *Cluster) Look(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	if c.Snap, err = c.Store.Read(ctx); err != nil {
		return ReadError(err, "cannot read the store")
	}
	return nil
}

// Serving returns the active controller, or the error of a verb that needs one.
func (c *Cluster) Serving() (*election.Active, error) {
	if !c.Snap.Active.Serving() {
		return nil, Errorf(NotActive, "nobody is active in %s", c.Name)
	}
	return c.Snap.Active, nil
}

// Holds reports whether a controller holds the lease in s.
func Holds(s election.Snapshot, name string) bool {
	return s.Active != nil && s.Active.Controller == name
}

// Until reads at every change, and every second, until what holds.
func Until(ctx context.Context, s Store, holds func(election.Snapshot) bool) (election.Snapshot, error) {
	hints := s.Watch(ctx)
	for {
		limited, cancel := context.WithTimeout(ctx, StoreTimeout)
		snap, err := s.Read(limited)
		cancel()
		if err == nil && holds(snap) {
			return snap, nil
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return snap, context.Cause(ctx)
		case <-hints:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Await reports the phases of the lease until a snapshot shows how a request ended, or until timeout.
// meanwhile follows the error of a request that has not ended by then.
func Await(ctx context.Context, s Store, say Say, timeout time.Duration, meanwhile string, ended func(election.Snapshot) bool) (election.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	begun, last := time.Now(), ""
	snap, err := Until(ctx, s, func(snap election.Snapshot) bool {
		phase := "nobody holds the lease"
		if a := snap.Active; a != nil {
			phase = fmt.Sprintf("%s: %s, term %d", a.Controller, a.State, a.Term)
		}
		if phase != last {
			say.printf("  +%-8s %s", time.Since(begun).Round(time.Millisecond), phase)
			last = phase
		}
		return ended(snap)
	})
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = Errorf(InProgress, "still in progress after %v: %s%s", timeout, last, meanwhile)
	}
	return snap, err
}

// newRequest returns a request of the cluster's operator for the reign of a term.
func (c *Cluster) newRequest(op, to, reason string, term election.Term) election.Request {
	return election.Request{ID: rand.Text()[:10], Op: op, To: to, By: c.By, Reason: reason, Term: term, For: requestFor}
}

// requestFor is how long a free lease is left to the target of a request.
const requestFor = time.Minute

// ask writes a request unless another one is waiting.
func (c *Cluster) ask(ctx context.Context, r election.Request) error {
	absent := election.Version(0)
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	err := c.Store.Put(ctx, election.Put{Key: election.RequestKey, Value: r.Encode(), If: &absent})
	switch {
	case errors.Is(err, election.ErrConflict):
		return Errorf(Refused, "another request is waiting: see `tanist list`, and `tanist cancel` to withdraw it")
	case err != nil:
		return WriteError(err, "the request")
	}
	return nil
}

// Member returns an error if the cluster has never had a controller of that name.
func (c *Cluster) Member(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	members, err := c.Store.List(ctx, election.MemberPrefix) // also those that are gone
	if err != nil {
		return ReadError(err, "cannot read the members")
	}
	var known []string
	for _, k := range c.Snap.Controllers {
		known = append(known, k.Name)
	}
	for _, e := range members {
		known = append(known, strings.TrimPrefix(e.Key, election.MemberPrefix))
	}
	reigns, err := ReadHistory(ctx, c.Store) // a member is recorded some seconds after it came
	if err != nil {
		return ReadError(err, "cannot read the history")
	}
	for _, h := range reigns {
		known = append(known, h.To, h.From)
	}
	known = append(known, c.Snap.Breadcrumb.Controller)
	if c.Snap.Active != nil {
		known = append(known, c.Snap.Active.Controller)
	}
	slices.Sort(known)
	known = slices.DeleteFunc(slices.Compact(known), func(name string) bool { return name == "" })
	if !slices.Contains(known, name) {
		return Errorf(Unknown, "there is no controller %q in %s; found: %s", name, c.Name, cmp.Or(strings.Join(known, ", "), "none"))
	}
	return nil
}

// outage words how long nobody served, counted from down, or the zero time if that was not seen.
func outage(down time.Time) string {
	if down.IsZero() {
		return "too short to be seen here"
	}
	return time.Since(down).Round(time.Millisecond).String()
}

// commandLine returns a command as it is typed. An empty argument is left out, with the flag before it.
func commandLine(args ...string) string {
	var line strings.Builder
	line.WriteString("tanist")
	for i := 0; i < len(args); i++ {
		if strings.HasPrefix(args[i], "--") && i+1 < len(args) && args[i+1] == "" {
			i++
			continue
		}
		if args[i] == "" {
			continue
		}
		line.WriteString(" " + quoted(args[i]))
	}
	return line.String()
}

// quoted returns an argument as a shell reads it.
func quoted(arg string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=+,@", r)
	}
	if arg != "" && !strings.ContainsFunc(arg, func(r rune) bool { return !plain(r) }) {
		return arg
	}
	return "'" + strings.ReplaceAll(Clean(arg), "'", `'\''`) + "'"
}

// typedTime returns a time as it is typed, or "" if it is zero.
func typedTime(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}
