package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// The packages of the tools, as tools/etcd/go.mod has them.
const (
	serverPackage = "go.etcd.io/etcd/server/v3"
	ctlPackage    = "go.etcd.io/etcd/etcdctl/v3"
)

// Build returns the paths of the pinned etcd and etcdctl, after building them if they are not in the cache. It needs
// the go command and, the first time, a module proxy. It may run in several processes at once.
func Build(ctx context.Context) (etcd, etcdctl string, err error) {
	if etcd, err = build(ctx, serverPackage, "etcd"); err != nil {
		return "", "", err
	}
	if etcdctl, err = build(ctx, ctlPackage, "etcdctl"); err != nil {
		return "", "", err
	}
	return etcd, etcdctl, nil
}

func build(ctx context.Context, pkg, name string) (string, error) {
	_, here, _, _ := runtime.Caller(0)
	tools := filepath.Join(filepath.Dir(here), "..", "..", "..", "tools", "etcd")
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = tools
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0", "PWD="+tools)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("cannot build %s: go %s in %s: %v\n%s", name, strings.Join(args, " "), tools, err, stderr.String())
		}
		return strings.TrimSpace(string(out)), nil
	}
	version, err := run("list", "-m", "-f", "{{.Version}}", pkg)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "tanist", "tools", fmt.Sprintf("%s-%s-%s-%s-%s", name, version, runtime.Version(), runtime.GOOS, runtime.GOARCH))
	bin := filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cannot build %s: %v", name, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("cannot build %s: %v", name, err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("cannot build %s: %v", name, err)
	}
	if _, err := os.Stat(bin); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return bin, err
	}
	if _, err := run("build", "-trimpath", "-o", bin+".new", pkg); err != nil {
		return "", err
	}
	if err := os.Rename(bin+".new", bin); err != nil {
		return "", fmt.Errorf("cannot build %s: %v", name, err)
	}
	return bin, nil
}

// Binary returns the path of the pinned etcd server.
func Binary(tb testing.TB) string { return tool(tb, serverPackage, "etcd") }

// Ctl returns the path of the pinned etcdctl.
func Ctl(tb testing.TB) string { return tool(tb, ctlPackage, "etcdctl") }

func tool(tb testing.TB, pkg, name string) string {
	tb.Helper()
	bin, err := build(tb.Context(), pkg, name)
	if err != nil {
		tb.Fatal(err)
	}
	return bin
}

// Debian returns the path of the etcd server that Debian's package etcd-server installs, or "" if it is not installed.
func Debian() string {
	const bin = "/usr/bin/etcd"
	if _, err := os.Stat(bin); err != nil {
		return ""
	}
	return bin
}
