package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/plugin"
)

// traits are those of one server, which is restarted within two seconds.
func traits() election.Traits {
	return election.Traits{MinTTL: time.Second, ExpirySlack: time.Second, LeaderGap: 2 * time.Second}
}

// store is one cluster. It implements [plugin.Store].
type store struct {
	conn     *nats.Conn
	js       jetstream.JetStream
	bucket   string
	replicas int
	prefix   string // of the subjects
	keys     string // prefix of the keys in the bucket

	mu    sync.Mutex
	ready bool                       // the bucket is there
	last  map[election.LeaseID]lease // as this process last wrote them
}

// lease is the last message of a lease.
type lease struct {
	seq uint64
	ttl time.Duration
}

var _ plugin.Store = (*store)(nil)

// open returns the store of a cluster. It works without a server; then calls fail.
func open(s plugin.Settings) (*store, error) {
	if err := s.Only("servers", "bucket", "replicas", "credentials_file", "ca_file", "cert_file", "key_file"); err != nil {
		return nil, err
	}
	value := func(name, otherwise string) string {
		if v := s.Values[name]; v != "" {
			return v
		}
		return otherwise
	}
	st := &store{bucket: value("bucket", "tanist"), last: map[election.LeaseID]lease{}}
	var err error
	if st.replicas, err = strconv.Atoi(value("replicas", "1")); err != nil || st.replicas < 1 || st.replicas > 5 {
		return nil, fmt.Errorf("%w: replicas is %q and must be 1 to 5", plugin.ErrSettings, s.Values["replicas"])
	}
	st.keys = strings.ReplaceAll(s.Cluster, ".", "=2E") + "." // a dot would begin another part of the subject
	st.prefix = "$KV." + st.bucket + "." + st.keys
	options := []nats.Option{
		nats.Name("tanist " + s.Cluster), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond),
		nats.Timeout(2 * time.Second), nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(2),
		nats.ReconnectBufSize(-1), // a request that is not sent now is not sent later, when nobody waits for it
	}
	if f := s.Values["credentials_file"]; f != "" {
		options = append(options, nats.UserCredentials(f))
	}
	if f := s.Values["ca_file"]; f != "" {
		options = append(options, nats.RootCAs(f))
	}
	if cert, key := s.Values["cert_file"], s.Values["key_file"]; cert != "" || key != "" {
		options = append(options, nats.ClientCert(cert, key))
	}
	if st.conn, err = nats.Connect(value("servers", nats.DefaultURL), options...); err != nil {
		return nil, fmt.Errorf("%w: %w", plugin.ErrSettings, err)
	}
	if st.js, err = jetstream.New(st.conn); err != nil {
		st.conn.Close()
		return nil, err
	}
	return st, nil
}

// Close implements [plugin.Store].
func (s *store) Close() error {
	s.conn.Close()
	return nil
}

// answer turns a refusal of the credentials into the error that stands for it.
func answer(err error) error {
	if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrPermissionViolation) {
		return fmt.Errorf("%w: %w", election.ErrDenied, err)
	}
	return err
}

// bucketReady creates the bucket if it is not there.
func (s *store) bucketReady(ctx context.Context) error {
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	if ready {
		return nil
	}
	_, err := s.js.KeyValue(ctx, s.bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		_, err = s.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: s.bucket, Description: "Tanist's clusters", Replicas: s.replicas, Storage: jetstream.FileStorage,
			LimitMarkerTTL: time.Minute, // keys may have a time to live, and a watch hears of its end
		})
		if errors.Is(err, jetstream.ErrBucketExists) { // another host was first
			err = nil
		}
	}
	if err != nil {
		return answer(err)
	}
	s.mu.Lock()
	s.ready = true
	s.mu.Unlock()
	return nil
}

// message is the last one of a subject.
type message struct {
	data []byte
	seq  uint64 // zero: there is none
	gone bool   // there is none, or it says that the key was removed
}

// get asks the leader of the stream for the last message of a key.
func (s *store) get(ctx context.Context, key string) (message, error) {
	if err := s.bucketReady(ctx); err != nil {
		return message{}, err
	}
	request, err := json.Marshal(map[string]string{"last_by_subj": s.prefix + key})
	if err != nil {
		return message{}, err
	}
	reply, err := s.conn.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET.KV_"+s.bucket, request)
	if err != nil {
		return message{}, answer(err)
	}
	var got struct {
		Message struct {
			Seq     uint64 `json:"seq"`
			Headers []byte `json:"hdrs"`
			Data    []byte `json:"data"`
		} `json:"message"`
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &got); err != nil {
		return message{}, err
	}
	switch {
	case got.Error != nil && got.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return message{gone: true}, nil
	case got.Error != nil && got.Error.ErrorCode == jetstream.JSErrCodeStreamNotFound:
		s.mu.Lock()
		s.ready = false // somebody has deleted the bucket
		s.mu.Unlock()
		return message{}, got.Error
	case got.Error != nil:
		return message{}, got.Error
	}
	headers := string(got.Message.Headers)
	gone := strings.Contains(headers, "\r\nKV-Operation:") || strings.Contains(headers, "\r\nNats-Marker-Reason:")
	return message{data: got.Message.Data, seq: got.Message.Seq, gone: gone}, nil
}

// errOther: the last message of a subject is not the one that was compared.
var errOther = errors.New("the key has another revision")

// put writes a key, once, if its last message is the one with the number at (zero: none). A ttl that
// is not zero ends it.
func (s *store) put(ctx context.Context, key string, data []byte, at uint64, ttl time.Duration) (uint64, error) {
	if err := s.bucketReady(ctx); err != nil {
		return 0, err
	}
	options := []jetstream.PublishOpt{jetstream.WithExpectLastSequencePerSubject(at), jetstream.WithRetryAttempts(0)}
	if ttl > 0 {
		options = append(options, jetstream.WithMsgTTL(ttl))
	}
	ack, err := s.js.Publish(ctx, s.prefix+key, data, options...)
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		return 0, errOther
	}
	if err != nil {
		return 0, answer(err)
	}
	return ack.Sequence, nil
}

// settle makes sure that the leader that answers next has a quorum: a write goes first.
func (s *store) settle(ctx context.Context) error {
	if s.replicas == 1 {
		return nil
	}
	_, err := s.js.Publish(ctx, s.prefix+"settle", nil, jetstream.WithRetryAttempts(0))
	return answer(err)
}

const (
	stateKey    = "state"
	leasePrefix = "lease."
)

// state is the document of a cluster.
type state struct {
	Revision election.Version `json:"revision"`
	Keys     map[string]key   `json:"keys"`
}

type key struct {
	Value   []byte           `json:"value,omitempty"`
	Version election.Version `json:"version"`
	Lease   election.LeaseID `json:"lease,omitempty"`
}

// load returns the document and its revision in the bucket, without the keys whose lease is gone.
// Only leases of keys that matter are looked for.
func (s *store) load(ctx context.Context, matters func(string) bool) (*state, uint64, error) {
	for {
		m, err := s.get(ctx, stateKey)
		if err != nil {
			return nil, 0, err
		}
		st := &state{Keys: map[string]key{}}
		if !m.gone {
			if err := json.Unmarshal(m.data, st); err != nil {
				return nil, 0, fmt.Errorf("cannot read %s%s: %w", s.keys, stateKey, err)
			}
		}
		var ids []election.LeaseID
		for name, k := range st.Keys {
			if k.Lease != "" && matters(name) && !slices.Contains(ids, k.Lease) {
				ids = append(ids, k.Lease)
			}
		}
		gone, err := s.gone(ctx, ids)
		if err != nil {
			return nil, 0, err
		}
		if len(gone) == 0 {
			return st, m.seq, nil
		}
		// Together, document and leases were true at one moment only if the document has not changed
		// before the leases were looked for.
		again, err := s.get(ctx, stateKey)
		if err != nil {
			return nil, 0, err
		}
		if again.seq == m.seq {
			maps.DeleteFunc(st.Keys, func(_ string, k key) bool { return slices.Contains(gone, k.Lease) })
			return st, m.seq, nil
		}
	}
}

// gone returns the leases that are over. One that is over never comes back.
func (s *store) gone(ctx context.Context, ids []election.LeaseID) ([]election.LeaseID, error) {
	over, errs := make([]bool, len(ids)), make([]error, len(ids))
	var asking sync.WaitGroup
	for i, id := range ids {
		asking.Go(func() {
			var m message
			m, errs[i] = s.get(ctx, leasePrefix+string(id))
			over[i] = m.gone
		})
	}
	asking.Wait()
	var gone []election.LeaseID
	for i, id := range ids {
		if over[i] {
			gone = append(gone, id)
		}
	}
	return gone, errors.Join(errs...)
}

func (st *state) view(selects func(string) bool) plugin.View {
	v := plugin.View{Revision: st.Revision}
	for name, k := range st.Keys {
		if selects(name) {
			v.Entries = append(v.Entries, election.Entry{Key: name, Value: k.Value, Version: k.Version, Lease: k.Lease})
		}
	}
	return v
}

// Read implements [plugin.Store].
func (s *store) Read(ctx context.Context, q plugin.Query) (plugin.View, error) {
	if err := s.settle(ctx); err != nil {
		return plugin.View{}, err
	}
	st, _, err := s.load(ctx, q.Selects)
	if err != nil {
		return plugin.View{}, err
	}
	return st.view(q.Selects), nil
}

// Grant implements [plugin.Store]. The value of the key is the ttl.
func (s *store) Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	id := election.LeaseID(rand.Text())
	ttl = (ttl + time.Second - 1).Truncate(time.Second) // what a server counts
	return id, s.renew(ctx, id, lease{ttl: ttl})
}

// renew writes a lease, on the condition that its last message is the given one.
func (s *store) renew(ctx context.Context, id election.LeaseID, l lease) error {
	var err error
	l.seq, err = s.put(ctx, leasePrefix+string(id), []byte(l.ttl.String()), l.seq, l.ttl)
	if err != nil {
		s.forget(id)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[id] = l
	return nil
}

func (s *store) forget(id election.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, id)
}

// Renew implements [plugin.Store].
func (s *store) Renew(ctx context.Context, id election.LeaseID) error {
	if !valid(id) {
		return election.ErrLost
	}
	s.mu.Lock()
	last, known := s.last[id]
	s.mu.Unlock()
	if known {
		if err := s.renew(ctx, id, last); !errors.Is(err, errOther) {
			return err
		}
	}
	for {
		m, err := s.get(ctx, leasePrefix+string(id))
		if err != nil {
			return err
		}
		if m.gone {
			return election.ErrLost
		}
		ttl, err := time.ParseDuration(string(m.data))
		if err != nil {
			return fmt.Errorf("cannot read the lease %s: %w", id, err)
		}
		if err := s.renew(ctx, id, lease{m.seq, ttl}); !errors.Is(err, errOther) {
			return err
		}
		// Another renewal came between, or it has just ended: look again.
	}
}

// valid reports whether a name can be that of a lease of ours.
func valid(id election.LeaseID) bool {
	return id != "" && !strings.ContainsFunc(string(id), func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '2' || r > '7') })
}

// Revoke implements [plugin.Store].
func (s *store) Revoke(ctx context.Context, id election.LeaseID) error {
	if !valid(id) {
		return nil
	}
	kv, err := s.js.KeyValue(ctx, s.bucket)
	if err == nil {
		err = kv.Purge(ctx, s.keys+leasePrefix+string(id), jetstream.PurgeTTL(time.Minute))
	}
	s.forget(id)
	return answer(err)
}

// Commit implements [plugin.Store].
func (s *store) Commit(ctx context.Context, c plugin.Change) (plugin.View, error) {
	if len(c.Writes) == 0 {
		if err := s.settle(ctx); err != nil {
			return plugin.View{}, err
		}
	}
	thorough := mathrand.N(16) == 0 // now and then, to remove what nobody asks for any more
	matters := func(name string) bool {
		return thorough || c.Bound != nil && c.Bound.Key == name || slices.Contains(c.Read, name) ||
			slices.ContainsFunc(c.If, func(i plugin.Condition) bool { return i.Key == name })
	}
	for {
		st, at, err := s.load(ctx, matters)
		if err != nil {
			return plugin.View{}, err
		}
		if err := s.allows(ctx, st, c); err != nil {
			return plugin.View{}, err
		}
		if len(c.Writes) > 0 {
			st.apply(c)
			data, err := json.Marshal(st)
			if err != nil {
				return plugin.View{}, err
			}
			_, err = s.put(ctx, stateKey, data, at, 0)
			if errors.Is(err, errOther) {
				continue // another change came first: look again
			}
			if err != nil {
				return plugin.View{}, err
			}
		}
		if c.End != "" {
			err = s.Revoke(ctx, c.End)
			if len(c.Writes) == 0 && err != nil {
				return plugin.View{}, err
			}
			// After writes, nothing that matters is bound to it: it ends by itself if this failed.
		}
		return st.view(func(name string) bool { return slices.Contains(c.Read, name) }), nil
	}
}

// allows checks the conditions of a change.
func (s *store) allows(ctx context.Context, st *state, c plugin.Change) error {
	if b := c.Bound; b != nil && (b.Lease == "" || st.Keys[b.Key].Lease != b.Lease) {
		return election.ErrLost
	}
	for _, i := range c.If {
		if st.Keys[i.Key].Version != i.Version {
			return election.ErrConflict
		}
	}
	var needed []election.LeaseID
	for _, w := range c.Writes {
		switch {
		case w.Lease == "" || slices.Contains(needed, w.Lease):
		case !valid(w.Lease):
			return plugin.ErrNoLease
		default:
			needed = append(needed, w.Lease)
		}
	}
	gone, err := s.gone(ctx, needed)
	if err == nil && len(gone) > 0 {
		err = plugin.ErrNoLease
	}
	return err
}

// apply carries out the writes.
func (st *state) apply(c plugin.Change) {
	st.Revision++
	for _, w := range c.Writes {
		if w.Remove {
			delete(st.Keys, w.Key)
		} else {
			st.Keys[w.Key] = key{Value: w.Value, Version: st.Revision, Lease: w.Lease}
		}
	}
	if c.End != "" {
		maps.DeleteFunc(st.Keys, func(_ string, k key) bool { return k.Lease == c.End })
	}
}

// Watch implements [plugin.Store]. A renewal is no change.
func (s *store) Watch(ctx context.Context, changed func()) error {
	if err := s.bucketReady(ctx); err != nil {
		return err
	}
	kv, err := s.js.KeyValue(ctx, s.bucket)
	if err != nil {
		return answer(err)
	}
	w, err := kv.Watch(ctx, s.keys+">", jetstream.UpdatesOnly())
	if err != nil {
		return answer(err)
	}
	defer w.Stop() //nolint:errcheck // it ends with ctx
	changed()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, open := <-w.Updates():
			if !open {
				return errors.New("the watch has ended")
			}
			if e != nil && (e.Key() == s.keys+stateKey || e.Operation() != jetstream.KeyValuePut) {
				changed()
			}
		}
	}
}

// Clusters implements [plugin.Lister].
func (s *store) Clusters(ctx context.Context) ([]string, error) {
	if err := s.bucketReady(ctx); err != nil {
		return nil, err
	}
	kv, err := s.js.KeyValue(ctx, s.bucket)
	if err != nil {
		return nil, answer(err)
	}
	all, err := kv.ListKeysFiltered(ctx, "*."+stateKey)
	if err != nil {
		return nil, answer(err)
	}
	var names []string
	for name := range all.Keys() {
		names = append(names, strings.ReplaceAll(strings.TrimSuffix(name, "."+stateKey), "=2E", "."))
	}
	return names, nil
}
