// Package consultest runs real Consul for tests and labs: servers and client agents as separate
// processes, so that each can be killed, frozen, stopped and restarted on its own, optionally with
// TLS and access control.
//
// Consul is built from source, in the version that tools/consul/go.mod pins, the first time it is
// asked for (several minutes), and kept in the user's cache directory ([testbed.Tool]). It is for tests on
// this machine only and never shipped: its licence is not an open one.
//
// # What is guaranteed
//
// Every agent listens on its own address in 127.0.0.0/8, on Consul's usual ports, so that several
// clusters can run at the same time. Agents keep their data in the directory they are given, and
// die with the process that started them.
//
// # What is not guaranteed
//
// Agents are processes of one machine. They share its clock, its disk and its load, and there is no
// network between them that could fail.
//
// # Usage
//
//	c := consultest.Start(t, consultest.Options{Servers: 3, Clients: 1})
//	client, err := c.Client(c.Clients[0])
//	leader, err := c.Leader(ctx)
package consultest
