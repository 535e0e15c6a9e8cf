package agentwatch

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
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
	target := Aim{Controller: "ctl-b", URL: "https://[::1]/app", Term: 8}
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

	// A candidate that its validation refuses is not put in place, and leaves nothing behind.
	if _, err := tm.prepare(t.Context(), "orders", Aim{Controller: "ctl-a", URL: "http://a"}); err == nil || !strings.Contains(err.Error(), "validation failed") {
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
	err := runCommand(t.Context(), (*exec.Cmd).Start, []string{"sh", "-c", "sleep 1000 & wait"}, nil, 50*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "did not end within 50ms") {
		t.Errorf("error %v", err)
	}
	if d := time.Since(began); d > 60*time.Second {
		t.Errorf("took %v", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := runCommand(ctx, (*exec.Cmd).Start, []string{"sleep", "1000"}, nil, time.Hour); err == nil {
		t.Error("does not end with its context")
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
		}, []string{"cluster: it is missing", "probe.interval: 0s", "retries.every: -1ns", `controllers[0]: "ctl-a:8080"`, "run.stop_timeout: 0s"}},
		{"sidecars that nobody can believe", func(c *Config) {
			c.Secret, c.Sidecars = nil, []string{"http://a:1"}
		}, []string{"sidecars: have no effect without failsafe.secret_file"}},
		{"a secret that protects nothing", func(c *Config) {
			c.Secret = func() (election.Secret, error) { return secret[:15], nil }
		}, []string{"failsafe.secret_file: the secret has fewer than 16"}},
		{"a secret that can't be read", func(c *Config) {
			c.Secret = func() (election.Secret, error) { return nil, errors.New("no such file") }
		}, []string{"failsafe.secret_file: no such file"}},
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
		{"names", func(c *Config) { c.Agents = append(c.Agents, c.Agents[0]); c.Agents[1].Key = "agents[1]." }, []string{`agents[1].name: "agt-1" is taken`}},
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
	a7 := Aim{URL: "http://a", Term: 7}
	for _, tc := range []struct {
		at, next Aim
		want     bool
	}{
		{Aim{}, a7, true},
		{a7, a7, false},
		{a7, Aim{URL: "http://a", Term: 8}, true},
		{a7, Aim{URL: "http://b", Term: 7}, true},
		{Aim{URL: "http://a"}, a7, false}, // the term has become known
		{Aim{URL: "http://b"}, a7, true},
	} {
		if got := tc.at.differs(tc.next); got != tc.want {
			t.Errorf("%+v → %+v: %v", tc.at, tc.next, got)
		}
	}
}

// No record, whatever its content, puts anything harmful into an argument, a variable or a file of
// an agent.
func FuzzData(f *testing.F) {
	f.Add("ctl-a", uint64(7), "http://10.0.0.1:8080/x")
	f.Add("ctl-a", uint64(1<<62), "http://[::1]")
	f.Add("$(reboot)", uint64(1), "http://a'b")
	f.Add("a\nb", uint64(1), "http://a;b")
	tmpl, err := parseTemplates(Agent{
		Name: "agt-1", Command: []string{"agent", "{{ .Active.URL }} {{ .Active.Controller }} {{ .Active.Scheme }} {{ .Active.Host }} {{ .Active.Port }}"},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, controller string, term uint64, url string) {
		w := newWorld(t)
		c := w.config()
		c.fill()
		var got wish
		v := newPicture(&c, c.Log, &counters{}, func(w wish) { got = w })
		v.sighting(election.Sighting{Active: &election.Active{Controller: controller, Term: election.Term(term), State: election.StateServing, URL: url}})
		v.look()
		if got.action != Follow {
			return
		}
		d, err := dataFor("orders", "agt-1", got.target)
		if err != nil {
			t.Fatal(err)
		}
		r, err := tmpl.render(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range append([]string{r.command[1]}, r.told...) {
			if strings.ContainsAny(text, "\t\r\n'\"`$\\;|<>(){}*!^&?#\x00") {
				t.Errorf("%q %d %q: %q", controller, term, url, text)
			}
		}
		if words := strings.Split(r.command[1], " "); len(words) != 5 || words[0] != url || words[1] != controller {
			t.Errorf("%q %d %q: %q", controller, term, url, words)
		}
	})
}

var _ Source = (*world)(nil)

// TestNamedURLsInTemplates: the names come from the record; before there is one, the check of the
// configuration accepts any.
func TestNamedURLsInTemplates(t *testing.T) {
	a := AgentDefaults()
	a.Name = "agt-1"
	a.Command = []string{"/bin/agent", "--master", "{{ .Active.URLs.pb }}"}
	tm, err := parseTemplates(a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tm.render(sampleData("orders", a)); err != nil {
		t.Errorf("the check refuses it: %v", err)
	}
	for urls, want := range map[election.URLs]string{
		`{"pb":"http://10.0.0.11:9989"}`: "http://10.0.0.11:9989",
		`{"web":"http://10.0.0.11:1"}`:   "",
		`{"pb":"http://10.0.0.66:9989"}`: "",
		"":                               "",
	} {
		d, err := dataFor("orders", "agt-1", Aim{Controller: "ctl-a", URL: "http://10.0.0.11:8080", URLs: urls, Term: 1})
		var r *rendered
		if err == nil {
			r, err = tm.render(d)
		}
		if want == "" && err == nil || want != "" && (err != nil || r.command[2] != want) {
			t.Errorf("%s: %+v, %v", urls, r, err)
		}
	}
}
