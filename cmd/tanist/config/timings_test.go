package config

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestImpossibleTimings: every inequality that the guarantees rest on is refused with its numbers and
// a way out, at its key.
func TestImpossibleTimings(t *testing.T) {
	for _, tc := range []struct{ name, store, lease, want string }{
		{
			"a TTL that etcd can't do", "etcd", "{ttl: 1s, validity: 500ms, renew_every: 100ms, stop_budget: 150ms, leader_change: true}",
			"lease.ttl 1s is below the 2s that etcd can do: raise ttl",
		},
		{
			"a TTL that Consul can't do", "consul", "{ttl: 5s, validity: 4s, renew_every: 500ms, stop_budget: 500ms, leader_change: true}",
			"lease.ttl 5s is below the 10s that consul can do: raise ttl",
		},
		{
			"the store may let another in while this one still may act", "etcd", "{ttl: 4s}",
			"lease.validity 4s, with 2 % clock drift and 50ms slack, is 4.13s and outlives lease.ttl 4s: lower validity or raise ttl",
		},
		{
			"the passive may see a silence without a reason", "etcd", "{profile: fast, silence: 600ms}",
			"lease.validity 600ms, with 2 % clock drift and 50ms slack, is 662ms and outlives lease.silence 600ms: lower validity or raise silence",
		},
		{
			"no time to stop", "etcd", "{stop_budget: 50ms}",
			"lease.stop_budget 50ms is too short to stop and confirm a process tree: make it at least 150ms",
		},
		{
			"the stop begins before the lease", "etcd", "{stop_budget: 4s, leader_change: true}",
			"lease.stop_budget 4s does not fit into lease.validity 4s: a forced stop would begin before the lease does",
		},
		{
			"one lost renewal costs the lease", "etcd", "{renew_every: 2s, leader_change: true}",
			"lease.renew_every 2s leaves fewer than two renewals in validity - stop_budget = 3s: lower renew_every to at most 1.5s",
		},
		{
			"every election inside the store stops the controller", "etcd", "{validity: 3s}",
			"lease.validity - stop_budget = 2s is shorter than renew_every + the 1.8s that etcd may take to elect a leader (2.8s): " +
				"every such election would stop the controller; raise validity, or accept it with lease.leader_change: true",
		},
		{
			"the same in Consul", "consul", "{validity: 6s}",
			"lease.validity - stop_budget = 5s is shorter than renew_every + the 5s that consul may take to elect a leader (6s)",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(good+"store: "+tc.store+"\nlease: "+tc.lease+"\n"), Options{File: "f.yml", Env: noEnv})
			if err == nil {
				t.Fatal("it was accepted")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("it does not say %q:\n%v", tc.want, err)
			}
			if !strings.HasPrefix(err.Error(), "f.yml:8:") || !strings.HasSuffix(err.Error(), "\n1 problem") {
				t.Errorf("one problem, and its place:\n%v", err)
			}
		})
	}
}

// TestProfilesAreSound: what is offered is accepted, with every store.
func TestProfilesAreSound(t *testing.T) {
	for _, store := range []string{"etcd", "consul", "postgres"} {
		for _, profile := range []string{"default", "fast"} {
			l, err := Parse(fmt.Appendf(nil, "%sstore: %s\nlease: {profile: %s}\n", good, store, profile), Options{File: "f.yml", Env: noEnv})
			if err != nil {
				t.Errorf("%s, %s: %v", store, profile, err)
				continue
			}
			if timing, err := l.Controller.Timing(); err != nil || timing.Profile != profile {
				t.Errorf("%s, %s: %+v, %v", store, profile, timing, err)
			}
		}
	}
}

// TestTwoTimings: what is impossible twice is told twice.
func TestTwoTimings(t *testing.T) {
	_, err := Parse([]byte(good+"lease: {ttl: 4s, renew_every: 2s, leader_change: true}\n"), Options{File: "f.yml", Env: noEnv})
	if err == nil || !strings.HasSuffix(err.Error(), "\n2 problems") {
		t.Errorf("got %v", err)
	}
}

// TestAnchors: YAML's own ways of saying something once are understood; merge keys are not, and
// that is told.
func TestAnchors(t *testing.T) {
	l, err := Parse([]byte(`kind: controller
cluster: &name orders
name: *name
run:
  command: &command [/bin/sh, -c, "exit 0"]
  url: http://10.0.0.11:8080
  stop_timeout: &long 20s
health:
  timeout: *long
  interval: *long
  checks: [{name: "a", exec: *command}]
yield_wait: !!str 40s
`), Options{File: "f.yml", Env: noEnv})
	if err != nil {
		t.Fatal(err)
	}
	c := l.Controller
	if c.Name != "orders" || c.Health.Timeout != 20*time.Second || c.Health.Checks[0].Exec[2] != "exit 0" || c.YieldWait != 40*time.Second {
		t.Errorf("got %+v", c)
	}
	for text, want := range map[string]string{
		good + "lease: {<<: {ttl: 5s}}\n":      "f.yml:7:9: lease.<<: ",
		good + "priority: *nobody\n":           "f.yml:7:11: priority: ",
		good + "hooks: &h {on_active: [*h]}\n": "hooks.on_active",
	} {
		if _, err := Parse([]byte(text), Options{File: "f.yml", Env: noEnv}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// TestOtherWaysToWriteAFile: what editors on other systems leave behind.
func TestOtherWaysToWriteAFile(t *testing.T) {
	for name, text := range map[string]string{
		"lines that end with CR LF": strings.ReplaceAll(good, "\n", "\r\n"),
		"a byte order mark":         "\ufeff" + good,
		"a document mark":           "---\n" + good,
		"an end mark":               good + "...\n",
		"no line break at the end":  strings.TrimSuffix(good, "\n"),
		"comments around":           "# one\n\n" + good + "\n# two\n",
		"JSON":                      `{"kind": "controller", "cluster": "orders", "name": "ctl-a", "run": {"command": ["/bin/sh"], "url": "http://10.0.0.11:8080"}}`,
	} {
		if _, err := Parse([]byte(text), Options{File: "f.yml", Env: noEnv}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
