// Package plugin is the SDK for plugins of Tanist: a store, or a health check, in a program of its
// own.
//
// A plugin of a store implements [Store], a handful of verbs on keys, versions and leases, and
// calls [Serve]. What an election compares and writes is not its business: [Backend] builds an
// [election.Backend] on a Store, on the side of Tanist. The same Backend runs in a plugin's own
// tests, with the contract that every store must pass:
//
//	func main() {
//		plugin.Serve(plugin.Plugin{Name: "file", Version: "1.0.0", OpenStore: open})
//	}
//
//	func TestContract(t *testing.T) {
//		electiontest.Contract(t, func(t *testing.T) electiontest.Harness { return harness{t.TempDir()} })
//	}
//
// The harness opens its hosts with [NewBackend]. Package host has the other side: it finds, starts,
// watches and ends plugins. The protocol between them is in proto/, for other languages than Go.
//
// # What is guaranteed
//
// A plugin never renews a lease by itself: each renewal is one request of the host. A plugin ends
// when its host ends, however that happens: [Serve] reads a pipe that the host holds open, and the
// kernel kills the plugin when the host's thread is gone.
//
// # What is not guaranteed
//
// The host checks the form of every answer and that versions never run backward. It cannot find out
// that a store which answers consistently does not keep its promises. Run the contract.
//
// # Compatibility
//
// This package, package election's [election.Backend] and package electiontest are the stable
// surface. docs/plugins.md says what may change, and when.
package plugin
