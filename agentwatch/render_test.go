package agentwatch

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRender(t *testing.T) {
	dir := t.TempDir()
	a := AgentDefaults()
	a.Name = "agt-1"
	a.Command = []string{"/bin/agent", "--server={{ .Active.URL }}", "{{ .Cluster }}/{{ .Name }}"}
	a.Env = map[string]string{"TERM_NO": "{{ .Active.Term }}", "AT": "{{ .Active.Host }}:{{ .Active.Port }}"}
	a.Files = []File{{
		Template: write(t, filepath.Join(dir, "t"), "{{ .Active.Controller }} {{ .Active.Scheme }}\n"), Path: filepath.Join(dir, "out"), Mode: 0o644,
		Validate: []string{"grep", "-q", "ctl-b https", "{{ .File }}"},
	}}
	tm, err := parseTemplates(a)
	if err != nil {
		t.Fatal(err)
	}
	target := Target{Controller: "ctl-b", URL: "https://[::1]/app", Term: 8}
	p, err := tm.prepare(t.Context(), "orders", target)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
		t.Error("the file is in place before the commit")
	}
	if err := p.commit(); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "out")); string(b) != "ctl-b https\n" {
		t.Errorf("the file is %q", b)
	}
	if want := []string{"/bin/agent", "--server=https://[::1]/app", "orders/agt-1"}; !slices.Equal(p.r.command, want) {
		t.Errorf("command %q", p.r.command)
	}
	if want := []string{"AT=::1:443", "TERM_NO=8"}; !slices.Equal(p.r.env, want) {
		t.Errorf("env %q", p.r.env)
	}
	for _, want := range []string{
		"TANIST_CLUSTER=orders", "TANIST_NAME=agt-1", "TANIST_TERM=8", "TANIST_ACTIVE_URL=https://[::1]/app", "TANIST_ACTIVE_CONTROLLER=ctl-b",
	} {
		if !slices.Contains(p.r.told, want) {
			t.Errorf("%s is not in %q", want, p.r.told)
		}
	}

	// What its validation refuses does not get into place, and leaves nothing behind.
	if _, err := tm.prepare(t.Context(), "orders", Target{Controller: "ctl-a", URL: "http://a"}); err == nil || !strings.Contains(err.Error(), "validation failed") {
		t.Errorf("error %v", err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "out")); string(b) != "ctl-b https\n" {
		t.Errorf("the file is %q", b)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("left behind: %v", left)
	}
}

func TestValidationThatHangsIsKilledWithItsGroup(t *testing.T) {
	began := time.Now()
	err := runCommand(t.Context(), []string{"sh", "-c", "sleep 1000 & wait"}, nil, 50*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "did not end within 50ms") {
		t.Errorf("error %v", err)
	}
	if d := time.Since(began); d > 60*time.Second {
		t.Errorf("took %v", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := runCommand(ctx, []string{"sleep", "1000"}, nil, time.Hour); err == nil {
		t.Error("goes on after its context has ended")
	}
}

func TestNewRefusesWhatIsWrongAllAtOnce(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t)
	base := func() Config { return w.config() }
	for _, tc := range []struct {
		name string
		f    func(c *Config)
		want []string
	}{
		{"good", func(*Config) {}, nil},
		{"several", func(c *Config) {
			c.Cluster, c.Probe.Interval, c.Retries.Every, c.Controllers = "", 0, -1, []string{"ctl-a:8080", "http://a"}
			c.Agents[0].StopTimeout = 0
		}, []string{`cluster: ""`, "probe.interval: 0s", "retries.every: -1ns", `controllers[0]: "ctl-a:8080"`, "run.stop_timeout: 0s"}},
		{"no command", func(c *Config) { c.Agents[0].Command = nil }, []string{"run.command: is empty"}},
		{"unknown key", func(c *Config) { c.Agents[0].Command[1] = "{{ .Active.Url }}" }, []string{"run.command[1]", "Url"}},
		{"syntax", func(c *Config) { c.Agents[0].Command[1] = "{{ .Active.URL" }, []string{"run.command[1]: cannot read the template"}},
		{"env", func(c *Config) { c.Agents[0].Env = map[string]string{"A=B": ""} }, []string{`run.env: "A=B"`}},
		{"file", func(c *Config) {
			c.Agents[0].Files = []File{
				{Template: "/none", Path: "/tmp/x", Mode: 0o640},
				{Template: "/none", Path: "/tmp/x", Mode: 0o10000, Owner: "no-such-user-here"},
			}
		}, []string{"run.files[0].template: open /none", "run.files[1].path: /tmp/x is also written by", "run.files[1].mode", `there is no user "no-such-user-here"`}},
		{"file key", func(c *Config) {
			c.Agents[0].Files = []File{{Template: write(t, filepath.Join(dir, "t"), "{{ .Nonsense }}"), Path: "/tmp/x", Mode: 0o640}}
		}, []string{"run.files[0].template", "Nonsense"}},
		{"on_change", func(c *Config) { c.Agents[0].OnChange.Action = "reload" }, []string{`on_change.action: "reload"`}},
		{"exec", func(c *Config) { c.Agents[0].OnChange.Action = Exec }, []string{"on_change.exec: is empty"}},
		{"names", func(c *Config) { c.Agents = append(c.Agents, c.Agents[0]) }, []string{`agents[1].name: "agt-1" is taken`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := base()
			c.Agents = slices.Clone(c.Agents)
			c.Agents[0].Command = slices.Clone(c.Agents[0].Command)
			tc.f(&c)
			_, err := New(c)
			if (err == nil) != (tc.want == nil) {
				t.Fatalf("error %v", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in:\n%v", want, err)
				}
			}
		})
	}
}

func TestTargetDiffers(t *testing.T) {
	a7 := Target{URL: "http://a", Term: 7}
	for _, tc := range []struct {
		at, next Target
		want     bool
	}{
		{Target{}, a7, true},
		{a7, a7, false},
		{a7, Target{URL: "http://a", Term: 8}, true},
		{a7, Target{URL: "http://b", Term: 7}, true},
		{Target{URL: "http://a"}, a7, false}, // the term has become known
		{Target{URL: "http://b"}, a7, true},
	} {
		if got := tc.at.differs(tc.next); got != tc.want {
			t.Errorf("%+v → %+v: %v", tc.at, tc.next, got)
		}
	}
}

// No record, whatever is in it, makes a watch follow a URL that could do harm in an argument, a file or a shell.
func FuzzURL(f *testing.F) {
	for _, s := range []string{"http://a", "https://[::1]:8443/x?y=1&z", "http://a'b", "http://a:99999", "http://a b", "javascript:alert(1)", "http://a\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		a, err := parseURL(raw)
		if err != nil {
			return
		}
		if strings.ContainsAny(raw, " \t\r\n'\"`$\\;|<>(){}*!^\x00") || !strings.HasPrefix(strings.ToLower(raw), a.scheme+"://") || a.host == "" || a.port == "" {
			t.Errorf("%q is accepted as %+v", raw, a)
		}
		if got, err := parseURL(sameURL(raw)); err != nil || got != a {
			t.Errorf("%q compares as %q: %+v, %v", raw, sameURL(raw), got, err)
		}
	})
}

var _ Source = (*world)(nil)
