// Package api serves a Tanist process's state: over HTTP to people, load balancers and Prometheus,
// and over plain TCP to HAProxy's agent-check.
//
// # What is guaranteed
//
//   - A question about a role is answered from memory and the lease's local deadline, never by a
//     round trip to the store. The response to GET, HEAD and OPTIONS is 200 for yes and 503 for no;
//     never 404, which some proxies take for "draining".
//   - Every response checks the lease's deadline, so a process that was frozen does not answer yes
//     when it continues.
//   - Errors are problem documents (RFC 9457).
//
// # What is not guaranteed
//
// A response is true when it is given. Traffic that was routed by it may arrive later; the
// repository's fence covers that.
//
// # Usage
//
//	s := api.New(api.Config{Answers: answers, Documents: documents, Metrics: collectors})
//	address, err := s.Listen("127.0.0.1:8405") // once per address
//	s.Run(ctx)                                 // until ctx ends
package api
