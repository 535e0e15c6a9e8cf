package etcd

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tanist/tanist/election"
)

// followAttempt bounds the first read of a feed. Reads after a failure have callLimit.
const followAttempt = 2 * time.Second

// feed keeps one consumer informed of the role key.
type feed struct {
	s    *Store
	out  chan election.Sighting
	last election.Sighting

	known bool
	mod   int64 // revision of the role key as last sent; zero: absent
	upTo  int64 // the store's revision up to which the role key is known
}

func (f *feed) run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		limit := followAttempt
		if failures > 0 {
			limit = callLimit
		}
		resp, err := f.read(ctx, limit)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			f.fail(err)
			pause(ctx, failures)
			failures++
			continue
		}
		f.seen(resp)
		began := time.Now()
		err = f.tail(ctx)
		if ctx.Err() != nil {
			return
		}
		f.s.log.Debug().Err(err).Msg("watch broke; retrying")
		if time.Since(began) > stay {
			failures = 0
		}
		if !errors.Is(err, errMoved) {
			pause(ctx, failures)
			failures++
		}
	}
}

func (f *feed) read(ctx context.Context, limit time.Duration) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return hedge(ctx, f.s, "read the role key", func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
		return c.Get(ctx, f.s.root+election.ActiveKey)
	})
}

// seen records the result of a linearizable read. The read is the truth, whatever revisions came
// before: a store that was restored from a backup counts from lower ones.
func (f *feed) seen(resp *clientv3.GetResponse) {
	var kv *mvccpb.KeyValue
	if len(resp.Kvs) > 0 {
		kv = resp.Kvs[0]
	}
	f.tell(kv)
	f.upTo = resp.Header.Revision
}

// tell sends the current role key (nil: absent) if it has changed.
func (f *feed) tell(kv *mvccpb.KeyValue) {
	var mod int64
	if kv != nil {
		mod = kv.ModRevision
	}
	if f.known && mod == f.mod && f.last.Err == nil {
		return
	}
	f.known, f.mod = true, mod
	f.last.Err, f.last.At = nil, time.Now()
	if kv == nil {
		f.last.Active = nil
	} else if a, err := election.DecodeActive(kv.Value); err != nil {
		f.last.Err = err
	} else {
		f.last.Active = &a
	}
	f.last.Offer(f.out)
}

func (f *feed) fail(err error) {
	f.last.Err, f.last.At = err, time.Now()
	f.last.Offer(f.out)
}

// tail forwards what a watch reports, and rereads periodically, until either breaks.
func (f *feed) tail(ctx context.Context) error {
	w, err := f.s.watch(ctx, watched{key: election.ActiveKey, options: []clientv3.OpOption{clientv3.WithRev(f.upTo + 1)}})
	if err != nil {
		return err
	}
	defer w.end(nil)
	type result struct {
		resp *clientv3.GetResponse
		err  error
		upTo int64 // at the start of the read
	}
	reads := make(chan result, 1)
	every := func() time.Duration { return f.s.reread*3/4 + rand.N(f.s.reread/2) }
	timer := time.NewTimer(every())
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			upTo := f.upTo
			if err := f.s.spawn(func() {
				resp, err := f.read(ctx, followAttempt)
				reads <- result{resp, err, upTo}
			}); err != nil {
				return err
			}
		case r := <-reads:
			switch {
			case r.err != nil:
				f.fail(r.err)
				return r.err
			case r.resp.Header.Revision < r.upTo:
				f.seen(r.resp)
				return errors.New("the store's revisions were rewound")
			case r.resp.Header.Revision >= f.upTo: // otherwise the watch has already reported something newer
				f.seen(r.resp)
			}
			timer.Reset(every())
		case resp, open := <-w.events[0]:
			if err := w.broken(resp, open); err != nil {
				f.s.avoidIfFailed(w)
				return err
			}
			for _, ev := range resp.Events {
				if ev.Kv.ModRevision <= f.upTo {
					continue // a read was faster
				}
				kv := ev.Kv
				if ev.Type == mvccpb.Event_DELETE {
					kv = nil
				}
				f.tell(kv)
				f.upTo = ev.Kv.ModRevision
			}
		}
	}
}
