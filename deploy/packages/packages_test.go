package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// host is a machine whose systemctl only writes down what it was told.
type host struct {
	t     *testing.T
	dir   string
	bare  bool   // no systemd runs
	fails string // a command of systemctl that fails
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir()}
	systemctl := `#!/bin/sh
echo "systemctl $*" >>"$LOG"
case "$1 $5" in
"list-units tanist@*.service") echo "tanist@orders.service loaded active running x"; echo "tanist@billing.service loaded active running x" ;;
"list-units tanist-vip@*.service") echo "tanist-vip@vip.service loaded active running x" ;;
"list-units tanist-haproxy.service") echo "tanist-haproxy.service loaded active running x" ;;
"list-units tanist-agentwatch@*.service") echo "tanist-agentwatch@agt-1.service loaded active running x" ;;
esac
[ "$1 $2" != "$FAILS" ]
`
	h.write("systemctl", systemctl)
	for _, other := range []string{"systemd-sysusers", "systemd-tmpfiles"} {
		h.write(other, "#!/bin/sh\necho \""+other+" $*\" >>\"$LOG\"\n")
	}
	return h
}

func (h *host) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

// run runs a script as a package manager does, and returns what systemd was told and what was printed.
func (h *host) run(script string, args ...string) (told, printed string) {
	h.t.Helper()
	log, systemd := filepath.Join(h.dir, "log"), h.dir
	if h.bare {
		systemd = filepath.Join(h.dir, "none")
	}
	if err := os.WriteFile(log, nil, 0o644); err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.CommandContext(h.t.Context(), "scripts/"+script, args...)
	cmd.Env = []string{"PATH=" + h.dir + ":/usr/bin:/bin", "LOG=" + log, "FAILS=" + h.fails, "TANIST_SYSTEMD=" + systemd}
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.t.Errorf("%s %v: %v\n%s", script, args, err, out)
	}
	b, err := os.ReadFile(log)
	if err != nil {
		h.t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, "list-units") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, "; "), string(out)
}

const prepared = "systemd-sysusers tanist.conf; systemd-tmpfiles --create tanist.conf; systemctl daemon-reload"

const upgraded = prepared + "; systemctl reload tanist@orders.service; systemctl reload tanist@billing.service; " +
	"systemctl kill --kill-who=main --signal=KILL tanist-vip@vip.service; systemctl restart tanist-haproxy.service"

const stopped = "systemctl stop tanist@*.service tanist-agentwatch@*.service tanist-vip@*.service tanist-haproxy.service"

// TestScriptsDoWhatEachPackageManagerAsksFor: an installation starts nothing, an upgrade lets each
// sidecar be replaced by one that adopts its controller, a removal is a planned move.
func TestScriptsDoWhatEachPackageManagerAsksFor(t *testing.T) {
	for _, c := range []struct {
		script string
		args   []string
		want   string
	}{
		{"postinstall", []string{"configure"}, prepared}, // dpkg
		{"postinstall", []string{"configure", ""}, prepared},
		{"postinstall", []string{"configure", "0.1.0"}, upgraded},
		{"postinstall", []string{"abort-remove"}, ""},
		{"preremove", []string{"upgrade", "0.2.0"}, ""},
		{"preremove", []string{"remove"}, stopped},
		{"postremove", []string{"upgrade", "0.2.0"}, ""},
		{"postremove", []string{"remove"}, "systemctl daemon-reload"},
		{"postinstall", []string{"1"}, prepared}, // rpm
		{"postinstall", []string{"2"}, upgraded},
		{"preremove", []string{"1"}, ""},
		{"preremove", []string{"0"}, stopped},
		{"postremove", []string{"1"}, ""},
		{"postremove", []string{"0"}, "systemctl daemon-reload"},
		{"postinstall", []string{"0.2.0-r0"}, prepared}, // apk
		{"postinstall", []string{"0.2.0-r0", "0.1.0-r0"}, upgraded},
		{"preremove", []string{"0.2.0-r0"}, stopped},
	} {
		t.Run(c.script+" "+strings.Join(c.args, " "), func(t *testing.T) {
			h := newHost(t)
			told, printed := h.run(c.script, c.args...)
			if told != c.want {
				t.Errorf("told systemd\n  %s\nwant\n  %s", told, c.want)
			}
			if c.want == upgraded && !strings.Contains(printed, "systemctl restart tanist-agentwatch@agt-1.service") {
				t.Errorf("the agentwatch, whose restart is for the operator to decide, is not named: %q", printed)
			}
			h.bare = true
			if told, _ := h.run(c.script, c.args...); told != "" {
				t.Errorf("without systemd: told it %s", told)
			}
		})
	}
}

// TestUpgradeWithARefusedFileSaysSo: the sidecar whose file the new version refuses goes on, the others
// are replaced, and the package is installed.
func TestUpgradeWithARefusedFileSaysSo(t *testing.T) {
	h := newHost(t)
	h.fails = "reload tanist@orders.service"
	told, printed := h.run("postinstall", "configure", "0.1.0")
	if told != upgraded {
		t.Errorf("told systemd %s", told)
	}
	if !strings.Contains(printed, "tanist@orders.service goes on with the version before") || strings.Contains(printed, "billing") {
		t.Errorf("printed %q", printed)
	}
}

// TestPackagesContainEveryUnit: the package takes whatever unit deploy/systemd has, and each calls the
// binary by the path that scripts/release replaces.
func TestPackagesContainEveryUnit(t *testing.T) {
	units, err := filepath.Glob("../systemd/*.service")
	if err != nil || len(units) == 0 {
		t.Fatalf("%v, %v", units, err)
	}
	for _, unit := range units {
		b, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(b), "/usr/local/bin/tanist ") == 0 || strings.Contains(string(b), "=/usr/bin/tanist") {
			t.Errorf("%s does not call /usr/local/bin/tanist", unit)
		}
	}
}
