// Package gate forwards a program's connections to the repository until a deadline.
//
// A program with a fixed repository password connects to a [Gate] on the same host. The gate logs
// in to the repository with the secret of the term, which the program never learns. A gate is a
// separate process in the program's tree: it survives when the sidecar is killed or upgraded, and
// it ends with the tree, no later than the lease's deadline. If it dies earlier, the program counts
// as failed.
//
// # What is guaranteed
//
// After the deadline no chunk leaves this host for the repository, even if the gate, the guard or
// both were stopped before it and continue after it. Only the program's user (unix: socket) or a
// client with the program's password is let in.
//
// # What is not guaranteed
//
// The deadline rests on this host's clock and only makes the cut prompt: there is a gap between the
// clock check and the write, there are buffers behind the write, and earlier data is already under
// way. That no statement of an older term commits is the guarantee of the fence,
// [postgres.Fence.Raise], which holds with or without a gate.
//
// A round trip through the gate costs two more hops on the host. That is little compared to a
// network, and much compared to a server on the same host: there, on two busy cores, pgbench
// reached a half to four fifths of its rate without the gate (BenchmarkGate). A program that can
// connect to a socket saves the TCP of one hop (listen: unix:).
//
// # Usage
//
//	g, err := gate.New(gate.Config{
//		Listen: "127.0.0.1:6432", DSN: dsn, // without a login: postgres.WithoutLogin
//		Role: role, Secret: secret, // of one term
//		Password: password,         // the program's fixed one
//		Deadline: deadline,         // when nothing may pass any more
//	})
//	err = g.Run(ctx, func(net.Addr) { ready() })
package gate
