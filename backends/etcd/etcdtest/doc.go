// Package etcdtest runs real etcd servers for tests, as separate processes, so that a test can
// kill, freeze and restart them one by one.
//
// The server and etcdctl are built from source on first use, in the versions that tools/etcd/go.mod
// pins, and kept in the user's cache directory ([testbed.Tool]). Nothing needs to be installed. [Debian]
// is for tests against Debian's older server, if it is installed.
//
// # What is guaranteed
//
// Members listen on the loopback interface on their own ports, keep their data in the test's
// temporary directory, and end with the test, even if it is killed.
//
// # What is not guaranteed
//
// Members are processes of one machine. They share its clock, its disk and its load, and there is
// no network between them that could fail.
//
// # Usage
//
//	c := etcdtest.Start(t, 3)
//	store, err := etcd.Open(etcd.Config{Endpoints: c.Endpoints(), Cluster: "orders"})
//	c.Kill(t, c.Leader(t))
package etcdtest
