// Package haproxy keeps one URL pointed at the active controller, by driving an HAProxy.
//
// # How it works
//
// A [Proxy] follows the role key of one or more clusters and does two things with what it learns:
//
//   - It keeps a configuration file: rendered from a template, checked with "haproxy -c" beside the old one, swapped in
//     atomically, and loaded by a seamless reload only when the structure changed (the set of controllers, a bind, the
//     template). The file also says who is active, so an HAProxy that restarts while Tanist is away comes up routed to
//     the last known good controller.
//   - It moves traffic through HAProxy's runtime API: the old server goes into maintenance and its sessions are cut,
//     the new one gets its address and is made ready. No reload, a few milliseconds.
//
// Moving is level-triggered: what HAProxy has ("show servers state") is compared with what it should have, at each
// change, every [Config.Reconcile], and whenever HAProxy was away. So it does not matter who restarted, in what order.
//
// # What is guaranteed
//
//   - At most one server of a cluster is in rotation. The old one is taken out, and its sessions are cut, in the same
//     command line and before the new one is let in.
//   - A record of an older term than the one known is dropped.
//   - What comes from the store is data: names, URLs and states are checked by type, and with [Cluster.Controllers] set,
//     only those URLs are followed. A record that is refused changes nothing and is logged once.
//   - A server is put into rotation only after its startup port accepted a connection from here; HAProxy's own check
//     takes it out if it stops answering.
//   - While the store can't be reached, or Tanist is dead, traffic stays where it was.
//   - A file that fails validation is not installed; the error names file and line, and the refused text is kept beside the
//     configuration as NAME.rejected.
//   - With the built-in template a request is retried only if the connection to the controller failed, that is, if no
//     byte of it was sent. No request reaches two controllers.
//
// # What is not guaranteed
//
// That requests in flight on a controller that dies are answered. And that an HAProxy that is cut off from Tanist learns
// of a change: it goes on sending to the last known good active, which by then serves nobody, because its sidecar
// stopped it before its lease ended.
//
// # Waiting instead of failing
//
// With [Cluster.HoldRequests], requests that find nobody active wait in HAProxy's queue. HAProxy queues only for a server
// that is up and full, so the backend has a last server, "hold", with room for one connection, and Tanist keeps
// that connection busy itself. While a controller is in rotation nothing ever gets to "hold"; while none is, everything
// queues behind it, and HAProxy hands the queue to the next controller at the moment it is made ready.
//
// # Why an own client of the runtime API
//
// The part of the runtime API that is needed is five commands on a Unix socket: a line out, text back. The client here is a page long.
// HAProxy's client-native brings its configuration model and the OpenAPI libraries along for the same
// lines, which is megabytes in a binary that is meant to be small.
package haproxy
