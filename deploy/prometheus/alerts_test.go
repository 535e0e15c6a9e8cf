package prometheus

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func rules(t *testing.T) []rule {
	t.Helper()
	text, err := os.ReadFile("alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string `yaml:"name"`
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.UnmarshalWithOptions(text, &file, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	var all []rule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("alerts.yml has no rules")
	}
	return all
}

// known returns the metrics that the commands show: every text in their source that is a metric's
// name, and no more.
func known(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	whole := regexp.MustCompile(`^tanist_[a-z_]+$`)
	files, err := filepath.Glob(filepath.Join("..", "..", "cmd", "tanist", "daemon", "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("cannot find the source of the metrics: %v", err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if s, err := strconv.Unquote(lit.Value); err == nil && whole.MatchString(s) {
					names[s] = true
				}
			}
			return true
		})
	}
	return names
}

var metric = regexp.MustCompile(`\btanist_[a-z_]+`)

// TestMetricNames: an alert or a panel over a metric that is not there would be silent for ever.
func TestMetricNames(t *testing.T) {
	have := known(t)
	if !have["tanist_role"] || !have["tanist_agent_followed_term"] || !have["tanist_proxy_up"] {
		t.Fatalf("the source has other metrics than it had: %v", have)
	}
	check := func(where, expr string) {
		found := metric.FindAllString(expr, -1)
		if len(found) == 0 {
			t.Errorf("%s: no metric of Tanist in %q", where, expr)
		}
		for _, m := range found {
			if !have[m] {
				t.Errorf("%s: %s is no metric of Tanist", where, m)
			}
		}
	}
	for _, r := range rules(t) {
		check("alert "+r.Alert, r.Expr)
	}
	for title, exprs := range panels(t) {
		for _, e := range exprs {
			check("panel "+title, e)
		}
	}
}

// TestLabels: the states and roles that are asked for are ones that there are.
func TestLabels(t *testing.T) {
	values := map[string][]string{
		"state":  {"starting", "serving", "stopping", "ready", "unfit", "yielding", "paused", "failed"},
		"role":   {"active", "passive"},
		"result": {"acknowledged", "failed"},
	}
	asked := regexp.MustCompile(`\b(state|role|result)="([^"]*)"`)
	exprs := map[string][]string{}
	for _, r := range rules(t) {
		exprs[r.Alert] = append(exprs[r.Alert], r.Expr)
	}
	for title, e := range panels(t) {
		exprs[title] = append(exprs[title], e...)
	}
	for where, all := range exprs {
		for _, m := range asked.FindAllStringSubmatch(strings.Join(all, "\n"), -1) {
			if !slices.Contains(values[m[1]], m[2]) {
				t.Errorf("%s: there is no %s %q", where, m[1], m[2])
			}
		}
	}
}

// TestRules: an alert must tell the person on call what is wrong and what to do.
func TestRules(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rules(t) {
		if !strings.HasPrefix(r.Alert, "Tanist") || seen[r.Alert] {
			t.Errorf("%q: each alert needs a name of its own that begins with Tanist", r.Alert)
		}
		seen[r.Alert] = true
		if s := r.Labels["severity"]; s != "page" && s != "ticket" {
			t.Errorf("%s: the severity is page or ticket, not %q", r.Alert, s)
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s: summary and description are needed", r.Alert)
		}
	}
	for _, name := range []string{
		"TanistNoActive", "TanistTwoActive", "TanistNoFitPassive", "TanistStoreUnreachable", "TanistLeaseMarginLow", "TanistAgentStale",
		"TanistPausedTooLong", "TanistStopFailed", "TanistStaleTermRefused",
	} {
		if !seen[name] {
			t.Errorf("there is no alert %s", name)
		}
	}
}

// TestPromtool: what the alerts do with made-up series, where promtool is installed.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed (Debian: prometheus)")
	}
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"check", "config", "prometheus.yml"}, {"test", "rules", "alerts_test.yml"}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// panels returns the expressions of the dashboard by the title of their panel.
func panels(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "grafana", "tanist.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string `json:"title"`
			Type    string `json:"type"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
		Templating struct {
			List []struct {
				Query string `json:"query"`
				Type  string `json:"type"`
			} `json:"list"`
		} `json:"templating"`
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			all[p.Title] = append(all[p.Title], target.Expr)
		}
		if p.Title == "" || (p.Type != "row" && len(p.Targets) == 0) {
			t.Errorf("panel %q shows nothing", p.Title)
		}
	}
	for _, v := range board.Templating.List {
		if v.Type == "query" {
			all["variable"] = append(all["variable"], v.Query)
		}
	}
	return all
}
