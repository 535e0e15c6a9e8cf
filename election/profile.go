package election

import (
	"strings"
	"time"
)

// EtcdTraits returns what etcd guarantees with its default heartbeat of 100 ms and election timeout
// of 1 s.
func EtcdTraits() Traits {
	return Traits{
		Name:   "etcd",
		MinTTL: 2 * time.Second, // 3/2 of the election timeout, rounded up
		// etcd looks for expired leases every 500 ms, and commits their end like any other write.
		ExpirySlack: 500*time.Millisecond + 200*time.Millisecond,
		LeaderGap:   1800 * time.Millisecond,
	}
}

// ConsulTraits returns what Consul guarantees with its default session_ttl_min and raft_multiplier =
// 1.
func ConsulTraits() Traits {
	return Traits{
		Name:        "consul",
		MinTTL:      10 * time.Second,
		ExpirySlack: 10 * time.Second, // the servers keep a session for up to twice its TTL
		// The longest of about 60 elections measured on a busy machine took 4.4 s.
		LeaderGap: 5 * time.Second,
	}
}

// PostgresTraits returns what the store in a PostgreSQL server guarantees. It has no leader to elect.
// The gap is a restart of the server.
func PostgresTraits() Traits {
	return Traits{
		Name:   "postgres",
		MinTTL: time.Second,
		// Every sidecar looks when the next lease may end, and ends it like any other write.
		ExpirySlack: 300 * time.Millisecond,
		LeaderGap:   2 * time.Second,
	}
}

// PluginTraits returns what is expected of a store by plugin, unless the configuration says
// otherwise. A plugin that guarantees less is refused when it is started.
func PluginTraits(name string) Traits {
	return Traits{Name: name, MinTTL: time.Second, ExpirySlack: 500 * time.Millisecond, LeaderGap: 2 * time.Second}
}

// PluginPrefix is what the name of a store by plugin begins with in a configuration.
const PluginPrefix = "plugin:"

// gap names what [Traits.LeaderGap] is spent on, as a verb and as a noun.
func (s Traits) gap() (verb, noun string) {
	if s.Name == "postgres" {
		return "restart", "restart"
	}
	return "elect a leader", "election"
}

// TraitsOf returns a store's guarantees, for checks that do not contact it.
func TraitsOf(store string) Traits {
	switch store {
	case "consul":
		return ConsulTraits()
	case "postgres":
		return PostgresTraits()
	}
	if name, ok := strings.CutPrefix(store, PluginPrefix); ok {
		return PluginTraits(name)
	}
	return EtcdTraits()
}

// Profile returns a named profile that fits the store. If the store's shortest TTL is longer than
// the profile's, the TTL is raised, and in the default profile the validity with it. If the store
// keeps the lease of a dead holder for longer than the validity, waiting for it would take too
// long: then the holder beats, at one write per renewal, and a passive may claim on silence.
func (s Traits) Profile(name string) (Timing, error) {
	t, err := Profile(name)
	if err != nil {
		return t, err
	}
	if t.TTL < s.MinTTL {
		if !t.Beat {
			t.Validity = time.Duration(float64(t.Validity) / float64(t.TTL) * float64(s.MinTTL))
		}
		t.TTL = s.MinTTL
	}
	if !t.Beat && s.ExpirySlack > t.Validity {
		t.Beat, t.Silence = true, t.Validity+silenceAfter
	}
	return t, nil
}

// silenceAfter is by how much the silence exceeds the validity in the default profile.
const silenceAfter = 500 * time.Millisecond
