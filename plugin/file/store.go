// Package file is a store in a directory: the example of docs/plugins.md, and enough for two
// controllers on one host.
//
// A cluster is one file of JSON, replaced as a whole under a lock of the kernel (flock). The kernel
// releases the lock when its process ends, so nothing stays locked. A lease ends by CLOCK_BOOTTIME,
// which is the same for all processes of a host and runs while it is suspended.
//
// What is not guaranteed: anything between hosts. A directory on a network file system is no store.
package file

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/plugin"
)

// Plugin returns the plugin. Its only setting is dir, an absolute path.
func Plugin() plugin.Plugin {
	return plugin.Plugin{
		Name: "file", Version: "1.0.0", Traits: Traits(),
		OpenStore: func(s plugin.Settings) (plugin.Store, error) { return Open(s) },
	}
}

// Traits are what this store guarantees. It has no leader, and nothing restarts.
func Traits() election.Traits {
	return election.Traits{Name: "file", MinTTL: 500 * time.Millisecond, ExpirySlack: 100 * time.Millisecond}
}

// lookEvery is how often a watch looks for changes.
const lookEvery = 20 * time.Millisecond

// Store is one cluster. It implements [plugin.Store].
type Store struct {
	dir, path, lock string
	boot            string
}

var _ plugin.Store = (*Store)(nil)

// Open returns the store of a cluster. It does not touch the directory.
func Open(s plugin.Settings) (*Store, error) {
	if err := s.Only("dir"); err != nil {
		return nil, err
	}
	dir := s.Values["dir"]
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("%w: dir is %q and must be an absolute path", plugin.ErrSettings, dir)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, s.Cluster+".json")
	return &Store{dir: dir, path: path, lock: path + ".lock", boot: strings.TrimSpace(string(boot))}, nil
}

// Close implements [plugin.Store].
func (s *Store) Close() error { return nil }

// content is what the file has.
type content struct {
	Revision election.Version              `json:"revision"`
	Boot     string                        `json:"boot"` // of the host, for the instants below
	Keys     map[string]key                `json:"keys"`
	Leases   map[election.LeaseID]validity `json:"leases"`
}

type key struct {
	Value   []byte           `json:"value,omitempty"`
	Version election.Version `json:"version"`
	Lease   election.LeaseID `json:"lease,omitempty"`
}

type validity struct {
	TTL  time.Duration    `json:"ttl"`
	Ends election.Instant `json:"ends"`
}

// locked runs f on the content of the file while no other process does. If f reports that it has
// changed the keys or the leases, the file is replaced.
func (s *Store) locked(ctx context.Context, f func(c *content) (changed bool, err error)) error {
	l, err := os.OpenFile(s.lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // nothing was written
	for unix.Flock(int(l.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	c, err := s.load()
	if err != nil {
		return err
	}
	before := c.Revision
	expired := c.expire(election.BootClock())
	if err := ctx.Err(); err != nil { // nothing is written for a caller that has given up
		return err
	}
	changed, answer := f(c)
	if changed || expired {
		if err := s.save(c, c.Revision != before); err != nil {
			return err // f's changes are lost, and so is its answer
		}
	}
	return answer
}

// load reads the file.
func (s *Store) load() (*content, error) {
	c := &content{}
	b, err := os.ReadFile(s.path)
	if err == nil {
		err = json.Unmarshal(b, c)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if c.Keys == nil {
		c.Keys, c.Leases = map[string]key{}, map[election.LeaseID]validity{}
	}
	if c.Boot != s.boot { // nobody could renew while the host was down: each lease starts over
		for id, v := range c.Leases {
			v.Ends = election.BootClock().Add(v.TTL)
			c.Leases[id] = v
		}
		c.Boot = s.boot
	}
	return c, nil
}

// save replaces the file. Keys must survive a crash of the host; renewals need not, for everybody who
// could rely on one is on this host.
func (s *Store) save(c *content, durable bool) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	next, err := os.CreateTemp(s.dir, filepath.Base(s.path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(next.Name()) //nolint:errcheck // it has most often been renamed
	_, err = next.Write(b)
	if err == nil && durable {
		err = next.Sync()
	}
	if err = errors.Join(err, next.Close()); err != nil {
		return err
	}
	return os.Rename(next.Name(), s.path)
}

// end removes a lease and what is bound to it.
func (c *content) end(id election.LeaseID) {
	delete(c.Leases, id)
	n := len(c.Keys)
	maps.DeleteFunc(c.Keys, func(_ string, k key) bool { return k.Lease == id })
	if len(c.Keys) != n {
		c.Revision++
	}
}

// expire ends the leases that are over.
func (c *content) expire(now election.Instant) (any bool) {
	for id, v := range c.Leases {
		if now >= v.Ends {
			c.end(id)
			any = true
		}
	}
	return any
}

// view returns the keys that are selected.
func (c *content) view(selects func(string) bool) plugin.View {
	v := plugin.View{Revision: c.Revision}
	for name, k := range c.Keys {
		if selects(name) {
			v.Entries = append(v.Entries, election.Entry{Key: name, Value: k.Value, Version: k.Version, Lease: k.Lease})
		}
	}
	return v
}

// Read implements [plugin.Store].
func (s *Store) Read(ctx context.Context, q plugin.Query) (v plugin.View, err error) {
	err = s.locked(ctx, func(c *content) (bool, error) {
		v = c.view(q.Selects)
		return false, nil
	})
	return v, err
}

// Grant implements [plugin.Store].
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error) {
	id := election.LeaseID(rand.Text())
	return id, s.locked(ctx, func(c *content) (bool, error) {
		c.Leases[id] = validity{TTL: ttl, Ends: election.BootClock().Add(ttl)}
		return true, nil
	})
}

// Renew implements [plugin.Store].
func (s *Store) Renew(ctx context.Context, lease election.LeaseID) error {
	return s.locked(ctx, func(c *content) (bool, error) {
		v, ok := c.Leases[lease]
		if !ok {
			return false, election.ErrLost
		}
		v.Ends = election.BootClock().Add(v.TTL)
		c.Leases[lease] = v
		return true, nil
	})
}

// Revoke implements [plugin.Store].
func (s *Store) Revoke(ctx context.Context, lease election.LeaseID) error {
	return s.locked(ctx, func(c *content) (bool, error) {
		c.end(lease)
		return true, nil
	})
}

// Commit implements [plugin.Store].
func (s *Store) Commit(ctx context.Context, ch plugin.Change) (v plugin.View, err error) {
	err = s.locked(ctx, func(c *content) (bool, error) {
		if err := c.allows(ch); err != nil {
			return false, err
		}
		if len(ch.Writes) > 0 {
			c.Revision++
		}
		for _, w := range ch.Writes {
			if w.Remove {
				delete(c.Keys, w.Key)
			} else {
				c.Keys[w.Key] = key{Value: w.Value, Version: c.Revision, Lease: w.Lease}
			}
		}
		if ch.End != "" {
			c.end(ch.End)
		}
		v = c.view(func(name string) bool { return slices.Contains(ch.Read, name) })
		return len(ch.Writes) > 0 || ch.End != "", nil
	})
	return v, err
}

// allows checks the conditions of a change.
func (c *content) allows(ch plugin.Change) error {
	if b := ch.Bound; b != nil && (b.Lease == "" || c.Keys[b.Key].Lease != b.Lease) {
		return election.ErrLost
	}
	for _, i := range ch.If {
		if c.Keys[i.Key].Version != i.Version {
			return election.ErrConflict
		}
	}
	for _, w := range ch.Writes {
		if _, ok := c.Leases[w.Lease]; w.Lease != "" && !ok {
			return plugin.ErrNoLease
		}
	}
	return nil
}

// Watch implements [plugin.Store]. Whoever looks first ends the leases that are over.
func (s *Store) Watch(ctx context.Context, changed func()) error {
	last := election.Version(0)
	for first := true; ; first = false {
		var now election.Version
		err := s.locked(ctx, func(c *content) (bool, error) {
			now = c.Revision
			return false, nil
		})
		if err != nil {
			return err
		}
		if first || now != last {
			changed()
		}
		last = now
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

// Clusters implements [plugin.Lister].
func (s *Store) Clusters(context.Context) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(s.dir, "*.json"))
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".json")
	}
	return files, err
}
