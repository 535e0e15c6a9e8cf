package etcdtest

import (
	"os"
	"testing"

	"github.com/tanist/tanist/internal/testbed"
)

// Binary returns the path of the pinned etcd server.
func Binary(tb testing.TB) string { return tool(tb, testbed.Etcd()) }

// Ctl returns the path of the pinned etcdctl.
func Ctl(tb testing.TB) string { return tool(tb, testbed.Etcdctl()) }

func tool(tb testing.TB, t testbed.Tool) string {
	tb.Helper()
	bin, err := t.Build(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return bin
}

// Debian returns the path of the etcd server that Debian's package etcd-server installs, or "" if
// it is not installed.
func Debian() string {
	const bin = "/usr/bin/etcd"
	if _, err := os.Stat(bin); err != nil {
		return ""
	}
	return bin
}
