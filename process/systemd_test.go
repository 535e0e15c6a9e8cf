package process

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startSystemd starts a user instance of the real systemd, in cgroups of its own, and returns its address and the directory
// for units.
func startSystemd(t *testing.T) (address, units string) {
	t.Helper()
	const binary = "/usr/lib/systemd/systemd"
	if _, err := os.Stat(binary); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and systemd")
	}
	dir := t.TempDir()
	units, run := filepath.Join(dir, "units"), filepath.Join(dir, "run")
	if err := errors.Join(os.Mkdir(units, 0o755), os.Mkdir(run, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"basic", "default", "shutdown"} {
		if err := os.WriteFile(filepath.Join(units, target+".target"), []byte("[Unit]\nDescription=test\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name := fmt.Sprintf("tanist-test-systemd-%d", os.Getpid())
	cgroup, err := makeCgroup(name)
	if err != nil {
		t.Skip(err)
	}
	script := `echo $$ >"$1/cgroup.procs"
		if [ -d /sys/fs/cgroup/systemd ]; then mkdir -p "/sys/fs/cgroup/systemd/$2" && echo $$ >"/sys/fs/cgroup/systemd/$2/cgroup.procs"; fi
		mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec ` + binary + ` --user --log-target=console`
	cmd := exec.Command("unshare", "-m", "sh", "-c", script, "systemd", cgroup, name)
	cmd.Env = []string{"XDG_RUNTIME_DIR=" + run, "SYSTEMD_UNIT_PATH=" + units, "HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		group, err := openCgroup(cgroup)
		if err != nil {
			t.Error(err)
			return
		}
		defer group.close()
		_ = group.kill()
		<-ended
		eventually(t, "systemd is gone", func() bool { return !group.populated() })
		if err := removeCgroup(cgroup); err != nil {
			t.Error(err)
		}
		if out, err := exec.Command("sh", "-c", `[ ! -d "/sys/fs/cgroup/systemd/$0" ] || find "/sys/fs/cgroup/systemd/$0" -depth -type d -exec rmdir {} +`, name).CombinedOutput(); err != nil {
			t.Logf("%v: %s", err, out)
		}
	})
	socket := filepath.Join(run, "systemd", "private")
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil { // the file is there a moment before anybody listens
			_ = conn.Close()
			break
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			t.Skipf("systemd does not run here: %s", text)
		default:
		}
		if time.Now().After(limit) {
			t.Skip("systemd does not come up here")
		}
	}
	return "unix:path=" + socket, units
}

func writeUnit(t *testing.T, units, name, program, more string) SystemdConfig {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	env := filepath.Join(t.TempDir(), "env")
	text := fmt.Sprintf("[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sh %s\nEnvironmentFile=-%s\nTimeoutStopSec=20\n%s\n", file, env, more)
	if err := errors.Join(os.WriteFile(file, []byte(program), 0o600), os.WriteFile(filepath.Join(units, name), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return SystemdConfig{Unit: name, EnvFile: env, Log: testLog(t)}
}

func TestSystemdContract(t *testing.T) {
	address, units := startSystemd(t)
	n := 0
	testContract(t, func(t *testing.T, program string) Driver {
		n++
		cfg := writeUnit(t, units, fmt.Sprintf("demo-%d.service", n), program, "")
		cfg.Address = address
		return NewSystemd(cfg)
	})
}

func TestSystemdUnitThatCannotBeKept(t *testing.T) {
	address, units := startSystemd(t)
	for name, test := range map[string]struct {
		more   string
		change func(*SystemdConfig)
		want   string
	}{
		"restarts":    {"Restart=always", func(*SystemdConfig) {}, "it has Restart=always"},
		"no unit":     {"", func(c *SystemdConfig) { c.Unit = "other.service" }, `systemd has not loaded it: its state is "not-found"`},
		"no service":  {"", func(c *SystemdConfig) { c.Unit = "basic.target" }, "only services can be kept"},
		"no file":     {"", func(c *SystemdConfig) { c.EnvFile = "" }, "name a file for it"},
		"other file":  {"", func(c *SystemdConfig) { c.EnvFile = "/nonexistent/env" }, "add EnvironmentFile=-/nonexistent/env"},
		"no systemd":  {"", func(c *SystemdConfig) { c.Address = "unix:path=/nonexistent/private" }, "systemd can't be reached"},
		"start fails": {"ExecStartPre=/bin/false", func(*SystemdConfig) {}, `its start ended as "failed"`},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := writeUnit(t, units, strings.ReplaceAll(name, " ", "-")+".service", polite, test.more)
			cfg.Address = address
			test.change(&cfg)
			d := NewSystemd(cfg)
			err := d.Start(t.Context(), []string{"A=1"}, soon(time.Minute))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("err = %v, want %s", err, test.want)
			}
			if d.current() != nil {
				if err := d.Stop(t.Context(), 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestSystemdExitWords(t *testing.T) {
	address, units := startSystemd(t)
	cfg := writeUnit(t, units, "demo.service", `while ! [ -e "$READY.end" ]; do : >"$READY"; sleep 0.05; done; exit 3`, "")
	cfg.Address = address
	d := NewSystemd(cfg)
	dir := t.TempDir()
	ready := filepath.Join(dir, `a $quoted"name`)
	if err := d.Start(t.Context(), []string{"READY=" + ready}, soon(time.Minute)); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, ready)
	if unix.Kill(d.PID(), 0) != nil {
		t.Error("no such main process")
	}
	if err := os.WriteFile(ready+".end", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	awaitClosed(t, "exit", d.Exited())
	eventually(t, "systemd has noticed", func() bool { return d.Exit() == "exit status 3" })
	if err := d.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
}
