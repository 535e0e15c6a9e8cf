package config

import (
	"reflect"
	"slices"
	"strings"
)

// EnvFrom selects which variables of Tanist a program inherits: all, none, or a list. It never
// inherits the variables that Tanist itself reads: see [consumed].
type EnvFrom []string

var envFromType = reflect.TypeFor[EnvFrom]()

// Inherited returns the part of environ that a child gets. With none it is PATH.
func (e EnvFrom) Inherited(environ []string) []string {
	all := len(e) == 0 || slices.Equal(e, EnvFrom{"all"})
	names := []string(e)
	if slices.Equal(e, EnvFrom{"none"}) {
		names = []string{"PATH"}
	}
	env := make([]string, 0, len(environ))
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if !consumed(name) && (all || slices.Contains(names, name)) {
			env = append(env, kv)
		}
	}
	return env
}

// consumed reports whether Tanist itself reads a variable: its own, those of etcdctl, Consul and
// libpq, and those of systemd's service protocol. No child inherits them: they may be secrets, or
// let the child act in Tanist's name.
func consumed(name string) bool {
	for _, prefix := range []string{"TANIST_", "CONSUL_", "ETCDCTL_", "PG", "LISTEN_FD", "WATCHDOG_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return slices.Contains([]string{"NOTIFY_SOCKET", "LISTEN_PID", "CREDENTIALS_DIRECTORY"}, name)
}

// ForCommand returns the part of environ that the command of `tanist run` gets, which has no file
// to configure it. Tanist does not read libpq's variables there, unless they locate the store.
func ForCommand(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return consumed(name) && !strings.HasPrefix(name, "PG")
	})
}

// envFrom checks the list of inherited variables.
func (d *decoder) envFrom(path string, from EnvFrom) {
	for _, name := range from {
		switch {
		case (name == "all" || name == "none") && len(from) == 1:
		case !envRule.MatchString(name):
			d.wrong(path, "%q can't be the name of a variable", name)
		case consumed(name):
			d.wrong(path, "Tanist itself reads %s, so no program inherits it: give the program's own value in %s", name, strings.TrimSuffix(path, "_from"))
		}
	}
}

// oomScore checks an oom_score_adj.
func (d *decoder) oomScore(path string, score int) {
	if score < -1000 || score > 1000 {
		d.wrong(path, "%d is not between -1000 and 1000", score)
	}
}
