// Package consultest runs real Consul for tests and labs: servers and client agents as separate processes, so that each
// can be killed, frozen, stopped and restarted by itself, with TLS and access control where that is asked for.
//
// Consul is built from source, in the version that tools/consul/go.mod pins, the first time it is asked for (several
// minutes), and kept in the user's cache directory ([Build]). It is for tests on this machine only and never shipped: its
// licence is not an open one.
//
// # What it guarantees
//
// Every agent listens on an address of its own in 127.0.0.0/8, on Consul's usual ports, so that several clusters run side by
// side. Agents keep their data in the directory they are given, and die with the process that started them.
package consultest
