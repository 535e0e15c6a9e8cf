package host

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/status"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/plugin"
	"github.com/tanist/tanist/plugin/internal/pluginv1"
)

// What is accepted from a plugin.
const (
	longestKey   = 1024
	longestLease = 256
)

// words returns the description of a gRPC error, fit for a log.
func words(err error) error {
	s := status.Convert(err)
	return fmt.Errorf("%s (%v)", printable(s.Message()), s.Code())
}

// memory is what earlier answers have shown. It outlives the processes of the plugin.
type memory struct {
	mu sync.Mutex
	sight
}

// sight is what had been seen at some moment.
type sight struct {
	origin   string
	revision election.Version
	keys     map[string]election.Entry // of one version each, the highest; replaced, never changed
}

// now returns what has been seen so far. An answer to a request that is sent after this call can't be
// older.
func (m *memory) now() sight {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sight
}

// learn adds an answer that has been checked.
func (m *memory) learn(v plugin.View) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v.Origin != m.origin { // another store, which counts anew
		m.sight = sight{origin: v.Origin}
	}
	m.revision = max(m.revision, v.Revision)
	for _, e := range v.Entries {
		if !remembered(e.Key) || e.Version <= m.keys[e.Key].Version {
			continue
		}
		keys := map[string]election.Entry{e.Key: e}
		for key, was := range m.keys {
			if key != e.Key {
				keys[key] = was
			}
		}
		m.keys = keys
	}
}

// remembered reports whether the values of a key are compared with earlier ones: those that decide
// who may act.
func remembered(key string) bool {
	return key == election.ActiveKey || key == election.TermKey || key == election.BeatKey
}

// view checks what a plugin has read, and returns it.
func (s *remote) view(v *pluginv1.View, asked func(key string) bool, before sight) (plugin.View, error) {
	if v == nil {
		return plugin.View{}, errors.New("it has no content")
	}
	view := plugin.View{Revision: election.Version(v.GetRevision()), Origin: v.GetOrigin()}
	if len(view.Origin) > longestKey || printable(view.Origin) != view.Origin {
		return view, errors.New("its origin is no name")
	}
	known := before
	if view.Origin != before.origin {
		known = sight{}
	}
	if view.Revision < known.revision {
		return view, fmt.Errorf("its revision is %d, after %d: the answer is old, or the store is another (then restart this process)", view.Revision, known.revision)
	}
	seen := make(map[string]bool, len(v.GetEntries()))
	for _, e := range v.GetEntries() {
		entry := election.Entry{Key: e.GetKey(), Value: e.GetValue(), Version: election.Version(e.GetVersion()), Lease: election.LeaseID(e.GetLease())}
		switch {
		case !asked(entry.Key) || len(entry.Key) > longestKey || seen[entry.Key]:
			return view, fmt.Errorf("the key %q was not asked for, or is there twice", printable(entry.Key))
		case entry.Version == 0 || entry.Version > view.Revision:
			return view, fmt.Errorf("%s has the version %d at revision %d", printable(entry.Key), entry.Version, view.Revision)
		case entry.Lease != "" && checkLease(entry.Lease) != nil:
			return view, fmt.Errorf("%s: %v", printable(entry.Key), checkLease(entry.Lease))
		}
		was := known.keys[entry.Key]
		switch {
		case entry.Version < was.Version:
			return view, fmt.Errorf("%s has the version %d, after %d", entry.Key, entry.Version, was.Version)
		case entry.Version == was.Version && (!bytes.Equal(entry.Value, was.Value) || entry.Lease != was.Lease):
			return view, fmt.Errorf("%s has another content at version %d than before", entry.Key, entry.Version)
		}
		seen[entry.Key] = true
		view.Entries = append(view.Entries, entry)
	}
	s.seen.learn(view)
	return view, nil
}

// plausible checks that an answer can be that of a change which was carried out.
func plausible(c plugin.Change, v plugin.View, before election.Version) error {
	shown := map[string]election.Entry{}
	for _, e := range v.Entries {
		shown[e.Key] = e
	}
	written := map[string]bool{}
	for _, w := range c.Writes {
		written[w.Key] = true
		if !w.Remove && v.Revision <= before {
			return fmt.Errorf("%s was written, and the revision is %d as before", w.Key, v.Revision)
		}
		e, there := shown[w.Key]
		switch {
		case !slices.Contains(c.Read, w.Key):
		case there == w.Remove:
			return fmt.Errorf("%s is there: %v, after a transaction that removed it: %v", w.Key, there, w.Remove)
		case there && (e.Version <= before || !bytes.Equal(e.Value, w.Value) || e.Lease != w.Lease):
			return fmt.Errorf("%s is not what was written", w.Key)
		}
	}
	if b := c.Bound; b != nil && !written[b.Key] && slices.Contains(c.Read, b.Key) && shown[b.Key].Lease != b.Lease {
		return fmt.Errorf("%s is shown as bound to another lease than the transaction compared", b.Key)
	}
	for _, i := range c.If {
		if !written[i.Key] && slices.Contains(c.Read, i.Key) && shown[i.Key].Version != i.Version {
			return fmt.Errorf("%s is shown with another version than the transaction compared", i.Key)
		}
	}
	return nil
}

// leases are the leases that were granted to this process.
type leases struct {
	mu  sync.Mutex
	all map[election.LeaseID]bool
}

// mostLeases bounds the memory: a process that has been granted more begins anew.
const mostLeases = 10_000

// add refuses what can't be the name of a new lease.
func (l *leases) add(id election.LeaseID) error {
	if err := checkLease(id); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all[id] {
		return fmt.Errorf("the lease %s was granted before", id)
	}
	if l.all == nil || len(l.all) >= mostLeases {
		l.all = map[election.LeaseID]bool{}
	}
	l.all[id] = true
	return nil
}

// checkLease refuses what can't be the name of a lease.
func checkLease(id election.LeaseID) error {
	if id == "" || len(id) > longestLease || strings.ContainsFunc(string(id), func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("the name of a lease is not 1 to 256 printable characters")
	}
	return nil
}
