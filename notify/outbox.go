package notify

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Store has the methods of [election.Backend] that the claims of notices need.
type Store interface {
	Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error)
	Revoke(ctx context.Context, lease election.LeaseID) error
	election.Keys
}

// Channel is one way to tell people.
type Channel struct {
	Name    string        // the same on every member, because claims are by name
	Events  []string      // empty: all
	Timeout time.Duration // of one attempt, up to MaxTimeout; zero: DefaultTimeout
	// Send sends one notice. It must end with its context. A [*Rejected] error is not retried.
	Send func(ctx context.Context, n Notice) error
}

// Rejected is the error of a notice that will not be accepted the next time, either.
type Rejected struct{ err error }

func (r *Rejected) Error() string { return r.err.Error() }

// Delayed is the error of a receiver that says when to try again.
type Delayed struct {
	err   error
	After time.Duration
}

func (d *Delayed) Error() string { return d.err.Error() }

// Config is what an outbox needs.
type Config struct {
	Store    Store
	Member   string // this member, for the records
	Channels []Channel
	Log      zerolog.Logger
}

// The limits of sending.
const (
	// GiveUp is how long a notice is tried.
	GiveUp = time.Hour
	// Waiting is how many notices may wait in a channel. More of them replace the oldest.
	Waiting = 256

	// DefaultTimeout bounds one attempt, and MaxTimeout its bound: the claim must outlast it.
	DefaultTimeout = 10 * time.Second
	MaxTimeout     = 30 * time.Second

	storeWithin = 5 * time.Second  // one call of the store
	claimTTL    = 50 * time.Second // more than an attempt and its record take
	retryFirst  = time.Second
	retryMost   = 5 * time.Minute
	otherSends  = 5 * time.Second // until another's claim is looked at again
	recordsKept = 300             // per channel
	recordsAge  = 30 * 24 * time.Hour
)

// Outbox sends notices. Its methods may be called from any goroutine.
type Outbox struct {
	cfg   Config
	lines []*line
}

// NewOutbox returns an outbox that does not send before Run.
func NewOutbox(cfg Config) *Outbox {
	o := &Outbox{cfg: cfg}
	for _, c := range cfg.Channels {
		o.lines = append(o.lines, &line{channel: c, wake: make(chan struct{}, 1)})
	}
	return o
}

// Tell makes notices wait to be sent. It does not block.
func (o *Outbox) Tell(notices []Notice) {
	now := time.Now()
	for _, l := range o.lines {
		for _, n := range notices {
			if len(l.channel.Events) > 0 && !slices.Contains(l.channel.Events, n.Event) {
				continue
			}
			if l.add(&parcel{Notice: n, due: now, since: now}) {
				o.cfg.Log.Warn().Str("channel", l.channel.Name).Int("waiting", Waiting).Msg("too many notices wait: the oldest is dropped")
			}
		}
	}
}

// Counts are how many notices a channel of this process has sent, given up or refused, and dropped.
type Counts struct{ Sent, Failed, Dropped uint64 }

// Counts returns the counts by channel.
func (o *Outbox) Counts() map[string]Counts {
	all := map[string]Counts{}
	for _, l := range o.lines {
		l.mu.Lock()
		all[l.channel.Name] = l.counts
		l.mu.Unlock()
	}
	return all
}

// Run sends until ctx ends.
func (o *Outbox) Run(ctx context.Context) {
	var sending sync.WaitGroup
	for _, l := range o.lines {
		sending.Go(func() {
			for {
				p := l.next(ctx)
				if p == nil {
					return
				}
				o.attempt(ctx, l, p)
			}
		})
	}
	sending.Wait()
}

// line is the queue of a channel.
type line struct {
	channel Channel
	wake    chan struct{}

	mu      sync.Mutex
	waiting []*parcel
	counts  Counts
}

// parcel is a notice that waits.
type parcel struct {
	Notice
	due, since time.Time
	tries      int
}

// add reports whether the oldest one had to go.
func (l *line) add(p *parcel) (full bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if full = len(l.waiting) >= Waiting; full {
		l.waiting = slices.Delete(l.waiting, 0, 1)
		l.counts.Dropped++
	}
	l.waiting = append(l.waiting, p)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return full
}

// next waits for the first notice that is due, and takes it. It returns nil when ctx ends.
func (l *line) next(ctx context.Context) *parcel {
	for {
		l.mu.Lock()
		wait := time.Hour
		for i, p := range l.waiting {
			if left := time.Until(p.due); left <= 0 {
				l.waiting = slices.Delete(l.waiting, i, i+1)
				l.mu.Unlock()
				return p
			} else if left < wait {
				wait = left
			}
		}
		l.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-l.wake:
		}
		timer.Stop()
	}
}

// later puts a notice back, unless it has been tried for long enough.
func (o *Outbox) later(l *line, p *parcel, after time.Duration, why error) {
	if time.Since(p.since)+after > GiveUp {
		o.lost(l, p, why, "a notice was not sent: giving up")
		return
	}
	p.due = time.Now().Add(after)
	l.add(p)
}

func (o *Outbox) lost(l *line, p *parcel, why error, text string) {
	l.mu.Lock()
	l.counts.Failed++
	l.mu.Unlock()
	o.cfg.Log.Error().Err(why).Str("channel", l.channel.Name).Str("notice", p.ID).Str("text", p.Text).Msg(text)
}

// attempt sends a notice, unless another member has sent it or is sending it.
func (o *Outbox) attempt(ctx context.Context, l *line, p *parcel) {
	claim, err := o.claim(ctx, l.channel.Name, p)
	switch {
	case errors.Is(err, errSent):
		return
	case errors.Is(err, errSending):
		o.later(l, p, otherSends, err)
		return
	case err != nil:
		p.tries++
		o.later(l, p, backOff(p.tries), err)
		return
	}
	sending, cancel := context.WithTimeout(ctx, cmp.Or(l.channel.Timeout, DefaultTimeout))
	err = l.channel.Send(sending, p.Notice)
	cancel()
	if err == nil {
		l.mu.Lock()
		l.counts.Sent++
		l.mu.Unlock()
		o.cfg.Log.Info().Str("channel", l.channel.Name).Str("notice", p.ID).Msg("a notice is sent")
		claim.sent(context.WithoutCancel(ctx), o)
		return
	}
	claim.giveBack(context.WithoutCancel(ctx), o) // this host may be the only one that cannot send it
	if _, rejected := errors.AsType[*Rejected](err); rejected {
		o.lost(l, p, err, "a notice is refused: not retrying")
		return
	}
	p.tries++
	after := backOff(p.tries)
	if delayed, ok := errors.AsType[*Delayed](err); ok {
		after = min(max(after, delayed.After), retryMost)
	}
	if ctx.Err() == nil {
		o.cfg.Log.Warn().Err(err).Str("channel", l.channel.Name).Str("notice", p.ID).Dur("retry_in", after).Msg("cannot send a notice; retrying")
	}
	o.later(l, p, after, err)
}

// backOff returns the pause after the nth failure.
func backOff(n int) time.Duration {
	return min(retryFirst<<min(n-1, 16), retryMost)
}

var (
	errSent    = errors.New("another member has sent it")
	errSending = errors.New("another member is sending it")
)

// record is the value of a notice's key: who sends it, bound to a lease, or has sent it.
type record struct {
	By   string    `json:"by"`
	At   time.Time `json:"at"`
	Sent bool      `json:"sent"`
}

// claim is the right to send a notice. The zero claim is that of a notice which only this member
// knows.
type claim struct {
	channel, key string
	lease        election.LeaseID
}

// claim acquires the right to send a notice.
func (o *Outbox) claim(ctx context.Context, channel string, p *parcel) (c claim, err error) {
	if p.local || o.cfg.Store == nil {
		return claim{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeWithin)
	defer cancel()
	c = claim{channel: channel, key: election.NoticeKey(channel, p.ID)}
	e, err := o.cfg.Store.Get(ctx, c.key)
	switch {
	case err != nil:
		return c, err
	case e.Version != 0 && e.Lease == "":
		return c, errSent
	case e.Version != 0:
		return c, errSending
	}
	if c.lease, err = o.cfg.Store.Grant(ctx, claimTTL); err != nil {
		return c, err
	}
	absent := election.Version(0)
	err = o.cfg.Store.Put(ctx, election.Put{Key: c.key, Value: o.encode(false), Lease: c.lease, If: &absent})
	if err != nil {
		c.giveBack(context.WithoutCancel(ctx), o)
	}
	if errors.Is(err, election.ErrConflict) {
		err = errSending
	}
	return c, err
}

func (o *Outbox) encode(sent bool) []byte {
	b, err := json.Marshal(record{By: o.cfg.Member, At: time.Now().UTC(), Sent: sent})
	if err != nil {
		return []byte("{}") // strings and times can always be encoded
	}
	return b
}

// giveBack ends the claim.
func (c claim) giveBack(ctx context.Context, o *Outbox) {
	if c.lease == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeWithin)
	defer cancel()
	if err := o.cfg.Store.Revoke(ctx, c.lease); err != nil {
		o.cfg.Log.Debug().Err(err).Msg("cannot give back the claim of a notice: it ends with its lease")
	}
}

// sent notes that the notice was sent, for good.
func (c claim) sent(ctx context.Context, o *Outbox) {
	if c.key == "" {
		return
	}
	limited, cancel := context.WithTimeout(ctx, storeWithin)
	defer cancel()
	if err := o.cfg.Store.Put(limited, election.Put{Key: c.key, Value: o.encode(true)}); err != nil {
		o.cfg.Log.Warn().Err(err).Str("key", c.key).Msg("cannot note that a notice was sent: another member may send it again")
	}
	c.giveBack(ctx, o)
	o.prune(limited, c.channel)
}

// prune removes old records of a channel. Nobody makes a notice of what is that old, except of a
// state that has lasted since then; the latest ones are kept for those.
func (o *Outbox) prune(ctx context.Context, channel string) {
	entries, err := o.cfg.Store.List(ctx, election.NoticeKey(channel, ""))
	if err != nil || len(entries) <= recordsKept {
		return
	}
	for _, e := range entries {
		var r record
		if json.Unmarshal(e.Value, &r) == nil && time.Since(r.At) > recordsAge {
			_ = o.cfg.Store.Delete(ctx, e.Key, e.Version) // the next one tries again
		}
	}
}
