// Package etcdtest runs real etcd servers for tests, as separate processes, so that a test can kill, freeze and restart
// them one by one.
//
// The server and etcdctl are built from source, in the versions that tools/etcd/go.mod pins, the first time they are
// asked for, and kept in the user's cache directory ([Build]). Nothing has to be installed. [Debian] is for tests against
// the old server that Debian ships, where it is installed.
//
// # What it guarantees
//
// Members listen on the loopback interface, on ports of their own, keep their data in the test's temporary directory, and
// are gone when the test is, even if it is killed.
package etcdtest
