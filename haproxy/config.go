package haproxy

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/tanist/tanist/election"
)

// The modes of a cluster's frontend and backend.
const (
	ModeHTTP = "http"
	ModeTCP  = "tcp" // also for TLS passthrough
)

// How HAProxy itself checks the controller that is in rotation.
const (
	CheckTCP    = "tcp"    // the startup port accepts a connection
	CheckActive = "active" // GET /active of the sidecar returns 200; needs its REST interface to be reachable from here
	CheckNone   = "none"
)

// Config configures a [Proxy]. Every zero value has a default, given at its field. [New] and
// [Render] validate it.
type Config struct {
	Clusters []Cluster // at least one

	Template   string // path of a text/template over [Data]; empty: the built-in one ([BuiltinTemplate])
	ConfigFile string // path of the HAProxy configuration to write; empty: no HAProxy, hooks only
	// Files are what HAProxy loads (-f), in that order, if ConfigFile is only a part of it: files,
	// and directories with *.cfg. Then ConfigFile contains only the clusters' sections, and the
	// rest is the operator's. If empty, ConfigFile is the whole configuration.
	Files []string
	// Overwrite replaces ConfigFile even if somebody else wrote it. The old file is kept as
	// NAME.before-tanist.
	Overwrite bool
	// StartHook starts the command of a hook. cmd.Env holds what to add to the environment; the
	// caller decides what else of its environment the hook gets. If nil, the hook gets all of it.
	StartHook    func(cmd *exec.Cmd) error `json:"-"`
	AdminSocket  string                    // path of HAProxy's stats socket (level admin)
	MasterSocket string                    // path of the master's socket; required for Spawn

	// Spawn makes Tanist start HAProxy (master-worker) and own it: Tanist restarts it with backoff
	// when it ends, and stops it when Run returns. If Tanist is killed HAProxy lives on, and the
	// next Run adopts it.
	Spawn  bool
	Binary string   // default "haproxy"
	Reload []string // command that reloads an HAProxy that has no MasterSocket; empty: none

	StatsBind   string // address of the statistics page in the built-in template; empty: none
	User, Group string // identity of HAProxy's workers in the built-in template; empty: unchanged
	SocketMode  string // permissions of the admin socket, octal; default "600"

	Reconcile time.Duration // interval at which HAProxy is compared with the desired state; default 2s, at least 100ms
	Hooks     []Hook        // run in order at each change, one at a time
}

// Cluster is one virtual URL.
type Cluster struct {
	Name        string
	Bind        string   // the argument of HAProxy's bind: ":8080", ":8443 ssl crt /etc/ssl/orders.pem"
	Mode        string   // ModeHTTP (default) or ModeTCP
	Backend     string   // name of HAProxy's frontend and backend; default Name
	Controllers []string // URLs that may be active; empty: any
	// Slots is the number of servers of the backend when Controllers is empty. They get their
	// addresses at run time. Default 3.
	Slots int
	// HoldRequests is how long requests wait in HAProxy's queue during a vacancy. Zero: they fail
	// at once (503).
	HoldRequests time.Duration
	Check        string // CheckTCP (default), CheckActive, CheckNone
}

// Hook is a command to run at each change of the active controller, for those who use another
// proxy. [Change] describes its arguments and environment.
type Hook struct {
	Command []string
	Timeout time.Duration // default 10s; then its process group is killed
}

// Defaults returns a Config with all defaults, except for what only the operator knows.
func Defaults() Config {
	return Config{Binary: "haproxy", SocketMode: "600", Reconcile: 2 * time.Second}
}

// ClusterDefaults returns a Cluster with all defaults.
func ClusterDefaults() Cluster { return Cluster{Mode: ModeHTTP, Slots: 3, Check: CheckTCP} }

// HookDefaults returns a Hook with all defaults.
func HookDefaults() Hook { return Hook{Timeout: 10 * time.Second} }

var (
	backendRE    = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	socketModeRE = regexp.MustCompile(`^[0-7]{3,4}$`)
)

// wrongs collects the problems of a configuration.
type wrongs []error

func (w *wrongs) bad(format string, args ...any) { *w = append(*w, fmt.Errorf(format, args...)) }

// complete returns c with its defaults filled in, or everything that is wrong with it.
func (c Config) complete() (Config, error) {
	var w wrongs
	c.Clusters = append([]Cluster(nil), c.Clusters...)
	c.Hooks = append([]Hook(nil), c.Hooks...)
	d := Defaults()
	c.Binary, c.SocketMode, c.Reconcile = cmp.Or(c.Binary, d.Binary), cmp.Or(c.SocketMode, d.SocketMode), cmp.Or(c.Reconcile, d.Reconcile)
	if c.Reconcile < 100*time.Millisecond {
		w.bad("haproxy.reconcile: %v is too short; at least 100ms", c.Reconcile)
	}
	if !socketModeRE.MatchString(c.SocketMode) {
		w.bad("haproxy.socket_mode: %q is not an octal mode such as 600", c.SocketMode)
	}
	c.checkPaths(&w)
	c.checkTexts(&w)
	if len(c.Clusters) == 0 {
		w.bad("cluster: is missing")
	}
	names, backends := map[string]bool{}, map[string]bool{}
	for i := range c.Clusters {
		key := clusterKeys(i)
		cl, err := c.Clusters[i].complete(c, key)
		c.Clusters[i] = cl
		if err != nil {
			w = append(w, err)
		}
		if names[cl.Name] {
			w.bad("%s: %q is listed twice", key("cluster"), cl.Name)
		}
		if backends[cl.Backend] {
			w.bad("%s: backend %q is used by another cluster", key("cluster"), cl.Backend)
		}
		names[cl.Name], backends[cl.Backend] = true, true
	}
	for i := range c.Hooks {
		h := &c.Hooks[i]
		if len(h.Command) == 0 || h.Command[0] == "" {
			w.bad("hooks[%d].command: is missing", i)
		}
		h.Timeout = cmp.Or(h.Timeout, HookDefaults().Timeout)
		if h.Timeout < 0 {
			w.bad("hooks[%d].timeout: %v is negative", i, h.Timeout)
		}
	}
	return c, errors.Join(w...)
}

// checkPaths checks which files and sockets are set and where they are.
func (c Config) checkPaths(w *wrongs) {
	if c.ConfigFile == "" {
		if len(c.Hooks) == 0 {
			w.bad("haproxy.config: is empty and there are no hooks, so there is nothing to do")
		}
		if c.Spawn {
			w.bad("haproxy.spawn: needs haproxy.config")
		}
		return
	}
	for _, f := range []struct{ key, path string }{
		{"config", c.ConfigFile}, {"admin_socket", c.AdminSocket}, {"master_socket", c.MasterSocket}, {"template", c.Template},
	} {
		switch {
		case f.path == "" && f.key == "admin_socket":
			w.bad("haproxy.admin_socket: is empty; the active is changed through it")
		case f.path == "" && f.key == "master_socket" && c.Spawn:
			w.bad("haproxy.master_socket: is empty; haproxy.spawn needs it for reloads")
		case f.path != "" && !filepath.IsAbs(f.path):
			w.bad("haproxy.%s: %q is not an absolute path", f.key, f.path)
		case strings.HasSuffix(f.key, "socket") && len(f.path) > 90:
			w.bad("haproxy.%s: %q is too long for a Unix socket (90 bytes)", f.key, f.path)
		}
	}
	for i, f := range c.Files {
		if !filepath.IsAbs(f) {
			w.bad("haproxy.files[%d]: %q is not an absolute path", i, f)
		}
	}
	if len(c.Files) > 0 && !c.isLoaded() {
		w.bad("haproxy.config: %q is not loaded by HAProxy: it has to be one of haproxy.files, or end with .cfg in one of its directories", c.ConfigFile)
	}
	if len(c.Files) > 0 && (c.User != "" || c.Group != "") {
		w.bad("haproxy.user: with haproxy.files the global section is not Tanist's: set user and group there")
	}
}

// checkTexts refuses values that HAProxy's configuration could read as more than one word.
func (c Config) checkTexts(w *wrongs) {
	for _, f := range []struct{ key, val string }{
		{"config", c.ConfigFile},
		{"admin_socket", c.AdminSocket},
		{"master_socket", c.MasterSocket},
		{"stats", c.StatsBind},
		{"user", c.User},
		{"group", c.Group},
	} {
		if strings.ContainsFunc(f.val, unicode.IsControl) {
			w.bad("haproxy.%s: %q has a control character", f.key, f.val)
		}
		if f.key != "stats" && strings.ContainsAny(f.val, " \t#\"'\\") {
			w.bad("haproxy.%s: %q has a blank, a quote, a backslash or a #", f.key, f.val)
		}
	}
}

// clusterKeys returns the names that the configuration file uses for the settings of the cluster at
// index i: those of the first cluster are at the top level and under haproxy, the others are in a
// list. The caller maps these names to file, line and column.
func clusterKeys(i int) func(setting string) string {
	return func(setting string) string {
		switch {
		case i > 0:
			return fmt.Sprintf("clusters[%d].%s", i-1, setting)
		case setting == "cluster" || strings.HasPrefix(setting, "controllers"):
			return setting
		default:
			return "haproxy." + setting
		}
	}
}

// complete returns c with its defaults filled in, or everything that is wrong with it; key returns
// the name of a setting of c.
func (c Cluster) complete(whole Config, key func(setting string) string) (Cluster, error) {
	var errs []error
	bad := func(setting, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key(setting), fmt.Sprintf(format, args...)))
	}
	if err := election.CheckName(c.Name); err != nil {
		bad("cluster", "%v", err)
	}
	if c.Backend == "" {
		c.Backend = c.Name
	}
	if !backendRE.MatchString(c.Backend) {
		bad("cluster", "backend %q may have letters, digits, dot, dash and underscore", c.Backend)
	}
	d := ClusterDefaults()
	c.Mode, c.Check, c.Slots = cmp.Or(c.Mode, d.Mode), cmp.Or(c.Check, d.Check), cmp.Or(c.Slots, d.Slots)
	if c.Mode != ModeHTTP && c.Mode != ModeTCP {
		bad("mode", "%q is neither %s nor %s", c.Mode, ModeHTTP, ModeTCP)
	}
	if c.Check != CheckTCP && c.Check != CheckActive && c.Check != CheckNone {
		bad("check", "%q must be %s, %s or %s", c.Check, CheckTCP, CheckActive, CheckNone)
	}
	if whole.ConfigFile != "" && whole.Template == "" && len(whole.Files) == 0 && strings.TrimSpace(c.Bind) == "" {
		bad("bind", "is empty; say where users come in, such as \":8080\"")
	}
	if strings.ContainsFunc(c.Bind, unicode.IsControl) {
		bad("bind", "%q has a control character", c.Bind)
	}
	if c.Slots < 2 || c.Slots > 64 {
		bad("slots", "%d; 2 to 64", c.Slots)
	}
	if c.HoldRequests < 0 || c.HoldRequests > time.Hour {
		bad("hold_requests", "%v; 0 to 1h", c.HoldRequests)
	}
	if c.HoldRequests > 0 && len(holdSocket(whole.AdminSocket, c.Backend)) > 90 {
		bad("hold_requests", "the path of the hold socket %q is too long for a Unix socket (90 bytes)", holdSocket(whole.AdminSocket, c.Backend))
	}
	// HAProxy's servers are addresses, so two URLs with the same address are one server.
	taken := map[string]bool{}
	for i, raw := range c.Controllers {
		u, err := election.ParseURL(raw)
		at := fmt.Sprintf("controllers[%d]", i)
		switch {
		case err != nil:
			bad(at, "%v", err)
		case taken[u.Address()]:
			bad(at, "%q is listed twice", raw)
		case c.tlsMismatch(u, whole):
			bad(at, "%q is https, which mode http of the built-in template can't carry; use mode tcp (TLS is passed through)", raw)
		}
		taken[u.Address()] = true
	}
	return c, errors.Join(errs...)
}

func holdSocket(admin, backend string) string {
	return filepath.Join(filepath.Dir(admin), backend+".hold.sock")
}

// AgentCheck returns the line that answers HAProxy's agent-check for a sidecar in state s: "ready
// up", "drain up", "maint" or "down#why". A line has both an administrative and a health word where
// one is needed to revert an earlier line, because HAProxy keeps an agent's words until the agent
// reverts them. A passive is in maintenance, not down. why is for people; characters that could
// break the line are removed.
func AgentCheck(s election.State, why string) string {
	switch s {
	case election.StateServing:
		return "ready up\n"
	case election.StateStopping:
		return "drain up\n"
	case election.StateFailed:
		if why = oneLine(why, 100); why == "" {
			why = string(s)
		}
		return "down#" + why + "\n"
	default:
		return "maint\n"
	}
}

// oneLine makes untrusted text fit for a log line, an environment variable or a check's result.
func oneLine(s string, limit int) string {
	if len(s) > 4*limit {
		s = s[:4*limit] // so that a value of a megabyte costs nothing
	}
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > limit {
		s = string(r[:limit-1]) + "…"
	}
	return s
}

func (c *Config) start(cmd *exec.Cmd) error {
	if c.StartHook != nil {
		return c.StartHook(cmd)
	}
	cmd.Env = append(os.Environ(), cmd.Env...)
	return cmd.Start()
}
