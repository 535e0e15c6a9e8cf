// Package api is how a Tanist process answers questions: over HTTP to people, load balancers and Prometheus, and over plain TCP to
// HAProxy's agent-check.
//
// # What is guaranteed
//
//   - A question about a role is answered from memory and the lease's local deadline, never by a round trip to the store,
//     with 200 for yes and 503 for no, to GET, HEAD and OPTIONS; never with 404, which some proxies take for "draining".
//   - The lease's deadline is looked at for every answer, so a process that was frozen does not say yes when it goes on.
//   - Errors are problem documents (RFC 9457).
//
// # What is not
//
// An answer is true when it is given. What is routed by it may arrive later; the repository's fence covers that.
package api
