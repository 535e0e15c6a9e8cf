package consultest

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

const consulPackage = "github.com/hashicorp/consul"

// Build returns the path of the pinned Consul, after building it if it is not in the cache. It needs the go command and,
// the first time, a module proxy and some minutes. It may run in several processes at once.
func Build(ctx context.Context) (string, error) {
	_, here, _, _ := runtime.Caller(0)
	tools := filepath.Join(filepath.Dir(here), "..", "..", "..", "tools", "consul")
	if !filepath.IsAbs(here) { // built with -trimpath, so the source tree is to be found from where this runs
		root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
		if err != nil {
			return "", errors.New("cannot build consul: run it in a checkout of this module")
		}
		tools = filepath.Join(strings.TrimSpace(string(root)), "tools", "consul")
	}
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = tools
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0", "PWD="+tools)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("cannot build consul: go %s in %s: %v\n%s", strings.Join(args, " "), tools, err, stderr.String())
		}
		return strings.TrimSpace(string(out)), nil
	}
	version, err := run("list", "-m", "-f", "{{.Version}}", consulPackage)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "tanist", "tools", fmt.Sprintf("consul-%s-%s-%s-%s", version, runtime.Version(), runtime.GOOS, runtime.GOARCH))
	bin := filepath.Join(dir, "consul")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cannot build consul: %v", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("cannot build consul: %v", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("cannot build consul: %v", err)
	}
	if _, err := os.Stat(bin); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return bin, err
	}
	if _, err := run("build", "-trimpath", "-ldflags", "-s -w", "-o", bin+".new", consulPackage); err != nil {
		return "", err
	}
	if err := os.Rename(bin+".new", bin); err != nil {
		return "", fmt.Errorf("cannot build consul: %v", err)
	}
	return bin, nil
}
