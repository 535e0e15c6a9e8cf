package operate

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/tanist/tanist/election"
)

// KeepOut makes a controller one that must not become active: standby or ban. If it is active,
// another is made active first. Only when another serves is the wish written, so a move that fails
// changes nothing.
type KeepOut struct {
	Name    string
	Reason  string
	Ban     bool
	For     time.Duration // zero: until an operator ends it
	Timeout time.Duration // of Follow

	already bool
	away    *Switchover // nil: it is not active
}

// Command implements [Verb].
func (v *KeepOut) Command() string {
	lasts := ""
	if v.For != 0 {
		lasts = v.For.String()
	}
	if v.Ban {
		return commandLine("ban", v.Name, "--for", lasts, "--reason", v.Reason)
	}
	return commandLine("standby", v.Name, "on", "--for", lasts, "--reason", v.Reason)
}

// Check implements [Verb].
func (v *KeepOut) Check(ctx context.Context, c *Cluster) error {
	if v.For < 0 || v.For > 0 && v.For < time.Second {
		return Errorf(Invalid, "%v is less than a second", v.For)
	}
	if err := c.Member(ctx, v.Name); err != nil {
		return err
	}
	if c.Snap.StandbyBad != nil {
		return Errorf(Refused, "cannot read who is on standby: %v: `tanist standby --reset` removes it", c.Snap.StandbyBad)
	}
	is, on := c.Snap.Standbys[v.Name]
	// A ban is the stricter one: a standby does not end it.
	v.already = on && (is.Ban && !v.Ban || is.Ban == v.Ban && is.For == v.For) && !Holds(c.Snap, v.Name)
	if !Holds(c.Snap, v.Name) {
		return nil
	}
	v.away = &Switchover{Reason: cmp.Or(v.Reason, v.Name+" is to be kept out"), Timeout: v.Timeout}
	if err := v.away.Check(ctx, c); err != nil {
		return Errorf(KindOf(err), "%s is active, and cannot be moved away: %v", v.Name, err)
	}
	return nil
}

// MovesTo returns who is made active first, for people, after Check. It is empty if the controller is
// not active.
func (v *KeepOut) MovesTo() string {
	if v.away == nil {
		return ""
	}
	return v.away.targets
}

func (v *KeepOut) nothing(*Cluster) bool { return v.already }

// Begin implements [Verb].
func (v *KeepOut) Begin(ctx context.Context, c *Cluster) error {
	switch {
	case v.already:
		return nil
	case v.away != nil:
		return v.away.Begin(ctx, c)
	}
	return v.write(ctx, c)
}

func (v *KeepOut) write(ctx context.Context, c *Cluster) error {
	wish := election.Standby{By: c.By, Reason: v.Reason, Since: time.Now().UTC(), Ban: v.Ban, For: v.For}
	return changeStandbys(ctx, c.Store, func(all election.Standbys) {
		if v.Ban || !all[v.Name].Ban { // somebody may have banned it meanwhile
			all[v.Name] = wish
		}
	})
}

// Follow implements [Verb]. It waits until the sidecar of the controller acts by the wish.
func (v *KeepOut) Follow(ctx context.Context, c *Cluster, say Say) error {
	if v.already {
		say.printf("%s is already %s", v.Name, c.Snap.Standbys[v.Name].Words(v.Name))
		return nil
	}
	if v.away != nil {
		if err := v.away.Follow(ctx, c, say); err != nil {
			return err
		}
		if err := v.write(ctx, c); err != nil {
			return err
		}
	}
	return v.confirmed(ctx, c, say)
}

// confirmWithin is how long a sidecar may take to act by a wish that it is told of at once.
const confirmWithin = 20 * time.Second

// confirmed waits until the sidecar of the controller acts by the wish, and reports what it means.
func (v *KeepOut) confirmed(ctx context.Context, c *Cluster, say Say) error {
	ctx, cancel := context.WithTimeout(ctx, min(v.Timeout, confirmWithin))
	defer cancel()
	var version string
	here := false
	snap, err := Until(ctx, c.Store, func(snap election.Snapshot) bool {
		if Holds(snap, v.Name) {
			return true
		}
		i := slices.IndexFunc(snap.Controllers, func(k election.Controller) bool { return k.Name == v.Name })
		if here = i >= 0; !here {
			return true
		}
		version = snap.Controllers[i].Version
		return snap.Controllers[i].State == election.StateStandby || snap.Pause != nil // paused is what it reports then
	})
	is, on := snap.Standbys[v.Name]
	switch {
	case err != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return err
	case err != nil:
		return Errorf(InProgress, "it is written, but the sidecar of %s, version %s, has not confirmed it: an older version ignores it", v.Name, Clean(version))
	case Holds(snap, v.Name):
		return Errorf(Refused, "%s took over again meanwhile: it keeps that reign, and gets no other; run the command again to move it away", v.Name)
	case !on:
		return Errorf(Refused, "somebody has ended it already: see `tanist list`")
	}
	say.printf("%s is %s", v.Name, is.Words(v.Name))
	if !here {
		say.printf("Its sidecar is not here; it learns of it when it starts.")
	}
	if a := snap.Active; a.Serving() && len(election.Successors(snap.Controllers, a.Controller)) == 0 {
		say.printf("No passive is ready now: if %s fails, nobody takes over.", a.Controller)
	}
	return nil
}

// LetIn ends a standby or a ban.
type LetIn struct {
	Name string
	Ban  bool

	neither bool
}

// Command implements [Verb].
func (v *LetIn) Command() string {
	if v.Ban {
		return commandLine("unban", v.Name)
	}
	return commandLine("standby", v.Name, "off")
}

// Check implements [Verb].
func (v *LetIn) Check(_ context.Context, c *Cluster) error {
	is, on := c.Snap.Standbys[v.Name]
	switch {
	case c.Snap.StandbyBad != nil:
		return Errorf(Refused, "%v: `tanist standby --reset` removes it", c.Snap.StandbyBad)
	case on && is.Ban != v.Ban:
		return Errorf(Refused, "%s is %s", v.Name, is.Words(v.Name))
	}
	v.neither = !on
	return nil
}

func (v *LetIn) nothing(*Cluster) bool { return v.neither }

// Begin implements [Verb].
func (v *LetIn) Begin(ctx context.Context, c *Cluster) error {
	if v.neither {
		return nil
	}
	return changeStandbys(ctx, c.Store, func(all election.Standbys) { delete(all, v.Name) })
}

// Follow implements [Verb].
func (v *LetIn) Follow(_ context.Context, _ *Cluster, say Say) error {
	if v.neither {
		say.printf("%s is neither on standby nor banned", v.Name)
		return nil
	}
	say.printf("%s may become active again; nothing is moved to it", v.Name)
	return nil
}

// ResetStandbys ends every standby and every ban, even if their record is unreadable.
type ResetStandbys struct{}

// Command implements [Verb].
func (v *ResetStandbys) Command() string { return commandLine("standby", "--reset", "-y") }

// Check implements [Verb].
func (v *ResetStandbys) Check(context.Context, *Cluster) error { return nil }

// Begin implements [Verb].
func (v *ResetStandbys) Begin(ctx context.Context, c *Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	if err := c.Store.Delete(ctx, election.StandbyKey, c.Snap.StandbyVer); err != nil {
		return WriteError(err, "who is on standby")
	}
	return nil
}

// Follow implements [Verb].
func (v *ResetStandbys) Follow(_ context.Context, c *Cluster, say Say) error {
	say.printf("every controller of %s may become active", c.Name)
	return nil
}

// EndStandbys ends those standbys and bans that are still as they are in over: their time is over.
func EndStandbys(ctx context.Context, s election.Keys, over election.Standbys) error {
	return changeStandbys(ctx, s, func(all election.Standbys) {
		for name, was := range over {
			if all[name] == was {
				delete(all, name)
			}
		}
	})
}

// changeStandbys changes the standby key by compare-and-swap, and removes it when it is empty.
func changeStandbys(ctx context.Context, s election.Keys, change func(election.Standbys)) error {
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	for {
		e, err := s.Get(ctx, election.StandbyKey)
		if err != nil {
			return ReadError(err, "cannot read who is on standby")
		}
		all := election.Standbys{}
		if e.Version != 0 {
			if all, err = election.DecodeStandbys(e.Value); err != nil {
				return Errorf(Refused, "cannot read who is on standby: %v: `tanist standby --reset` removes it", err)
			}
			all = maps.Clone(all)
		}
		if all == nil {
			all = election.Standbys{}
		}
		change(all)
		if len(all) == 0 {
			err = s.Delete(ctx, election.StandbyKey, e.Version)
		} else {
			err = s.Put(ctx, election.Put{Key: election.StandbyKey, Value: all.Encode(), If: &e.Version})
		}
		if err == nil || !errors.Is(err, election.ErrConflict) || ctx.Err() != nil {
			if err != nil {
				return WriteError(err, "who is on standby")
			}
			return nil
		}
	}
}
