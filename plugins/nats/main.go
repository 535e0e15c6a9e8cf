// Tanist-plugin-nats is a store in NATS JetStream: one key-value bucket, in a server or a cluster of
// servers that is there anyway.
//
// # How it is kept
//
// The keys of a cluster are one document, CLUSTER.state, which is changed by compare-and-set on its
// revision: that makes every change a transaction. A lease is a key of its own, CLUSTER.lease.ID,
// with a time to live that the server counts; each renewal writes it anew, on the condition that it
// is still there. A key of the document that is bound to a lease counts as absent once the lease is
// gone, and the next change removes it.
//
// # What is guaranteed
//
// No read is served by a replica: the leader of the stream is asked, and with more than one replica a
// write goes first, which only a leader with a quorum acknowledges.
//
// # What is not guaranteed
//
// The server counts a time to live by its wall clock. A step forward ends leases early: the holder
// stops, and the next waits out the holder's validity, so there are never two. A step backward keeps
// the lease of a dead holder for that much longer. A cluster of servers takes up to ten seconds to
// elect a leader of a stream, so set leader_gap. All keys of a cluster share one message, at most 1 MB
// with the server's defaults: a few hundred agents.
package main

import "github.com/tanist/tanist/plugin"

func main() { plugin.Serve(offered()) }

// offered is the plugin.
func offered() plugin.Plugin {
	return plugin.Plugin{
		Name: "nats", Version: "0.1.0", Traits: traits(),
		OpenStore: func(s plugin.Settings) (plugin.Store, error) { return open(s) },
	}
}
