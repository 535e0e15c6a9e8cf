// Package haproxy keeps one URL pointed at the active controller by controlling HAProxy.
//
// # How it works
//
// A [Proxy] follows the role key of one or more clusters and does two things:
//
//   - It keeps a configuration file: rendered from a template, checked with "haproxy -c", swapped
//     in atomically, and loaded by a seamless reload only if the structure changed (the set of
//     controllers, a bind, the template). The file also names the active, so an HAProxy that
//     restarts while Tanist is away routes to the last known good controller.
//   - It moves traffic through HAProxy's runtime API: the old server goes into maintenance and its
//     sessions are cut; the new one gets its address and becomes ready. That takes a few
//     milliseconds and no reload.
//
// Moving is level-triggered: the actual state of HAProxy ("show servers state") is compared with
// the desired state at each change, every [Config.Reconcile], and whenever HAProxy was away. So it
// does not matter which process restarted, or in what order.
//
// # What is guaranteed
//
//   - At most one server of a cluster is in rotation. One command line takes the old one out and
//     cuts its sessions, before the new one is let in.
//   - Data from the store must pass [election.Filter]: names, URLs, terms and states are checked by
//     type, with [Cluster.Controllers] set only those URLs are followed, and older terms are
//     dropped unless the store keeps reporting them for long enough. A refused record changes
//     nothing and is logged once.
//   - Tanist refuses to replace a configuration that somebody else wrote, unless [Config.Overwrite]
//     is set. With [Config.Files] Tanist writes one file of several.
//   - With [Config.Spawn], one Tanist at a time owns the HAProxy of a master socket. If Tanist is
//     killed, that HAProxy keeps running, and the next Run adopts it.
//   - A server enters rotation only after its startup port accepted a connection from this host.
//     HAProxy's own check takes it out if it stops responding.
//   - While the store is unreachable, or Tanist is dead, traffic stays where it was.
//   - A file that fails validation is not installed. The error names file and line, and the refused
//     text is kept next to the configuration as NAME.rejected.
//   - With the built-in template a request is retried only if the connection to the controller
//     failed, so that no byte of it was sent. No request reaches two controllers.
//
// # What is not guaranteed
//
// Requests in flight on a controller that dies may remain unanswered. An HAProxy that is cut off
// from Tanist does not learn of a change: it keeps sending to the last known good active. That
// controller serves nobody by then, because its sidecar stopped it before its lease ended.
//
// # Waiting instead of failing
//
// With [Cluster.HoldRequests], requests wait in HAProxy's queue during a vacancy. HAProxy queues
// only for a server that is up and full. So the backend has a last server, "hold", with room for
// one connection, and Tanist itself keeps that connection busy. While a controller is in rotation,
// no request reaches "hold". During a vacancy every request queues behind it, and HAProxy gives the
// queue to the next controller as soon as that becomes ready.
//
// # Why a custom client of the runtime API
//
// Tanist needs five commands of the runtime API on a Unix socket: one line out, text back. The
// client is a page long. HAProxy's client-native would add its configuration model and the OpenAPI
// libraries for the same lines: megabytes in a binary that should be small.
//
// # Usage
//
//	proxy, err := haproxy.New(haproxy.Config{
//		Clusters:    []haproxy.Cluster{{Name: "orders", Bind: ":8080"}},
//		ConfigFile:  "/etc/haproxy/haproxy.cfg",
//		AdminSocket: "/run/haproxy/admin.sock", MasterSocket: "/run/haproxy/master.sock",
//	}, map[string]haproxy.Source{"orders": store}, log) // everything that is wrong with it
//	...
//	err = proxy.Run(ctx) // until ctx ends
package haproxy
