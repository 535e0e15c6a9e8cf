package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tanist/tanist/election"
)

// Pause suspends failovers and moves.
type Pause struct {
	For    time.Duration // zero: until it is resumed
	Reason string

	already bool
}

// Command implements [Verb].
func (v *Pause) Command() string {
	lasts := ""
	if v.For != 0 {
		lasts = v.For.String()
	}
	return commandLine("pause", "--for", lasts, "--reason", v.Reason)
}

// Check implements [Verb].
func (v *Pause) Check(context.Context, *Cluster) error {
	if v.For < 0 || v.For > 0 && v.For < time.Second {
		return Errorf(Invalid, "%v is less than a second", v.For)
	}
	return nil
}

func (v *Pause) nothing(c *Cluster) bool { return c.Snap.PauseVer != 0 }

// Begin implements [Verb].
func (v *Pause) Begin(ctx context.Context, c *Cluster) error {
	value, err := json.Marshal(election.Pause{By: c.By, Reason: v.Reason, Since: time.Now().UTC(), For: v.For})
	if err != nil {
		return err
	}
	absent := election.Version(0)
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	err = c.Store.Put(ctx, election.Put{Key: election.PauseKey, Value: value, If: &absent})
	if v.already = errors.Is(err, election.ErrConflict); err != nil && !v.already {
		return WriteError(err, "the pause")
	}
	return nil
}

// Follow implements [Verb].
func (v *Pause) Follow(_ context.Context, c *Cluster, say Say) error {
	end := "until `tanist resume`"
	if v.For > 0 {
		end = fmt.Sprintf("for %v, or %s", v.For, end)
	}
	if v.already {
		say.printf("%s is paused already", c.Name)
		return nil
	}
	say.printf("%s is paused: nothing fails over %s", c.Name, end)
	return nil
}

// Resume ends a pause.
type Resume struct{}

// Command implements [Verb].
func (v *Resume) Command() string { return commandLine("resume") }

// Check implements [Verb].
func (v *Resume) Check(context.Context, *Cluster) error { return nil }

func (v *Resume) nothing(c *Cluster) bool { return c.Snap.PauseVer == 0 }

// Begin implements [Verb].
func (v *Resume) Begin(ctx context.Context, c *Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	if err := c.Store.Delete(ctx, election.PauseKey, 0); err != nil {
		return WriteError(err, "the end of the pause")
	}
	return nil
}

// Follow implements [Verb].
func (v *Resume) Follow(_ context.Context, c *Cluster, say Say) error {
	if c.Snap.PauseBad != nil {
		say.printf("removed an unreadable pause: %s", c.Snap.PauseBad.Error())
	}
	if c.Snap.PauseVer == 0 {
		say.printf("%s is not paused", c.Name)
		return nil
	}
	say.printf("%s is not paused any more", c.Name)
	return nil
}

// Cancel withdraws a request that has not begun.
type Cancel struct{}

// Command implements [Verb].
func (v *Cancel) Command() string { return commandLine("cancel") }

// Check implements [Verb].
func (v *Cancel) Check(context.Context, *Cluster) error { return nil }

func (v *Cancel) nothing(c *Cluster) bool { return c.Snap.RequestVer == 0 }

// Begin implements [Verb].
func (v *Cancel) Begin(ctx context.Context, c *Cluster) error {
	if c.Snap.RequestVer == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	err := c.Store.Delete(ctx, election.RequestKey, c.Snap.RequestVer)
	if errors.Is(err, election.ErrConflict) {
		return Errorf(Refused, "the request has changed meanwhile: see `tanist list`")
	}
	if err != nil {
		return WriteError(err, "the withdrawal")
	}
	return nil
}

// Follow implements [Verb].
func (v *Cancel) Follow(_ context.Context, c *Cluster, say Say) error {
	request := c.Snap.Request
	switch {
	case c.Snap.RequestVer == 0:
		say.printf("nothing is requested in %s", c.Name)
		return nil
	case request == nil:
		say.printf("removed what nobody could carry out: %s", c.Snap.RequestBad.Error())
		return nil
	}
	say.printf("withdrew the %s that %s asked for", RequestWords(*request), request.By)
	if request.At.IsZero() && (!c.Snap.Active.Serving() || c.Snap.Active.Term != request.Term) {
		say.printf("It may have begun already: see `tanist list`.")
	}
	return nil
}
