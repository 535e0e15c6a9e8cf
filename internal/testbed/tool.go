package testbed

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
)

// Tool is a program that the tests run against, built from source in the version that a module
// under tools/ pins.
type Tool struct {
	Name    string   // of the binary
	Module  string   // the directory under tools/
	Package string   // what is built
	Flags   []string // of go build, besides -trimpath
}

// Etcd is the etcd server.
func Etcd() Tool { return Tool{Name: "etcd", Module: "etcd", Package: "go.etcd.io/etcd/server/v3"} }

// Etcdctl is etcd's command-line client.
func Etcdctl() Tool {
	return Tool{Name: "etcdctl", Module: "etcd", Package: "go.etcd.io/etcd/etcdctl/v3"}
}

// Consul is Consul, server and client agent.
func Consul() Tool {
	return Tool{Name: "consul", Module: "consul", Package: "github.com/hashicorp/consul", Flags: []string{"-ldflags", "-s -w"}}
}

// Build returns the path of the tool's binary, after building it if it is not in the user's cache.
// It needs the go command and, the first time, a module proxy and some minutes. It may run in
// several processes at once: one builds, the others wait.
func (t Tool) Build(ctx context.Context) (string, error) {
	bin, err := t.build(ctx)
	if err != nil {
		return "", fmt.Errorf("cannot build %s: %v", t.Name, err)
	}
	return bin, nil
}

func (t Tool) build(ctx context.Context) (string, error) {
	tools, err := toolsDir(ctx)
	if err != nil {
		return "", err
	}
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = filepath.Join(tools, t.Module)
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0", "PWD="+cmd.Dir)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("go %s in %s: %v\n%s", strings.Join(args, " "), cmd.Dir, err, stderr.String())
		}
		return strings.TrimSpace(string(out)), nil
	}
	version, err := run("list", "-m", "-f", "{{.Version}}", t.Package)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "tanist", "tools", strings.Join([]string{t.Name, version, runtime.Version(), runtime.GOOS, runtime.GOARCH}, "-"))
	bin := filepath.Join(dir, t.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(bin); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return bin, err
	}
	args := append([]string{"build", "-trimpath", "-o", bin + ".new"}, t.Flags...)
	if _, err := run(append(args, t.Package)...); err != nil {
		return "", err
	}
	return bin, os.Rename(bin+".new", bin)
}

// toolsDir returns the checkout's directory tools.
func toolsDir(ctx context.Context) (string, error) {
	_, here, _, _ := runtime.Caller(0)
	if filepath.IsAbs(here) {
		return filepath.Join(filepath.Dir(here), "..", "..", "tools"), nil
	}
	// Built with -trimpath, so the checkout is found from the working directory.
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", errors.New("run it in a checkout of this module")
	}
	return filepath.Join(strings.TrimSpace(string(root)), "tools"), nil
}
