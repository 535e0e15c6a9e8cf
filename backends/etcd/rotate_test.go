package etcd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/election/electiontest"
)

// TestPasswordRotatedOnDisk: no login fails while the password changes, whether the file or etcd is
// changed first.
func TestPasswordRotatedOnDisk(t *testing.T) {
	c := etcdtest.Start(t, 1)
	h := newHarness(t, c)
	for _, args := range []string{
		"user add root:r00t", "user grant-role root root", "role add tanist",
		"role grant-permission tanist --prefix=true readwrite " + h.key(""),
		"user add ana:first", "user grant-role ana tanist", "auth enable",
	} {
		c.Ctl(t, strings.Fields(args)...)
	}
	root, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Username: "root", Password: "r00t"})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	file := filepath.Join(t.TempDir(), "password")
	write := func(password string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	s, err := Open(Config{Cluster: h.cluster, Endpoints: c.Endpoints(), Username: "ana", PasswordFile: file})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	lease := hold(t, s, time.Minute)
	renew := func(when string) {
		t.Helper()
		s.endpoints[0].token.Store(nil) // a login is due
		if err := renewed(ctxFor(t, patience), s, lease, true); err != nil {
			t.Errorf("renewal %s: %v", when, err)
		}
	}
	change := func(to string) {
		t.Helper()
		if _, err := root.UserChangePassword(ctxFor(t, patience), "ana", to); err != nil {
			t.Fatal(err)
		}
	}
	renew("at first")
	write("second")
	renew("with the new password in the file, not in etcd yet")
	write("")
	renew("while the file is being written")
	write("second")
	change("second")
	renew("with the new password in both")
	change("third")
	write("third")
	renew("with etcd changed first")
}

// TestCertificatesRotatedOnDisk: authority, certificate and key are all replaced, and etcd is
// restarted with them.
func TestCertificatesRotatedOnDisk(t *testing.T) {
	dir := t.TempDir()
	files := electiontest.Certificates(t, dir)
	c := etcdtest.Start(t, 1, etcdtest.WithTLS(files.CAFile, files.CertFile, files.KeyFile))
	s, err := Open(Config{Cluster: "orders", Endpoints: c.Endpoints(), TLS: files})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	lease := hold(t, s, time.Minute)
	electiontest.Certificates(t, dir)
	if err := renewed(ctxFor(t, patience), s, lease, true); err != nil {
		t.Errorf("renewal after the files were replaced: %v", err)
	}
	c.Restart(t, 0)
	for ctx := ctxFor(t, patience); ; {
		if err = renewed(ctx, s, lease, true); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		t.Errorf("renewal after etcd took the new files: %v", err)
	}
}
