package haproxy

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/tanist/tanist/election"
)

// The modes of a cluster's frontend and backend.
const (
	ModeHTTP = "http"
	ModeTCP  = "tcp" // also for TLS that is passed through
)

// How HAProxy itself checks the controller that is in rotation.
const (
	CheckTCP    = "tcp"    // the startup port accepts
	CheckActive = "active" // GET /active of the sidecar answers 200; needs its REST interface to be reachable from here
	CheckNone   = "none"
)

// Config says what a [Proxy] keeps. Every zero value has a default, which is named at the field; [New] and [Render]
// validate it.
type Config struct {
	Clusters []Cluster // at least one

	Template     string // path of a text/template over [Data]; empty: the built-in one ([BuiltinTemplate])
	ConfigFile   string // path of the HAProxy configuration that is written; empty: no HAProxy, hooks only
	AdminSocket  string // path of HAProxy's stats socket (level admin)
	MasterSocket string // path of the master's socket; needed for Spawn, else optional

	// Spawn: Tanist starts HAProxy (master-worker) and owns it: restarts it with backoff when it ends, and stops it
	// when Run returns. The kernel kills it if Tanist is killed.
	Spawn  bool
	Binary string   // default "haproxy"
	Reload []string // command that reloads an HAProxy that has no MasterSocket; empty: none

	StatsBind   string // bind of the statistics page in the built-in template; empty: none
	User, Group string // whom HAProxy's workers run as in the built-in template; empty: unchanged
	SocketMode  string // permissions of the admin socket, octal; default "600"

	Reconcile time.Duration // how often HAProxy is compared with what it should have; default 2s, at least 100ms
	Hooks     []Hook        // run in order at each change, one at a time
}

// Cluster is one virtual URL.
type Cluster struct {
	Name        string
	Bind        string   // the argument of HAProxy's bind: ":8080", ":8443 ssl crt /etc/ssl/orders.pem"
	Mode        string   // ModeHTTP (default) or ModeTCP
	Backend     string   // name of HAProxy's frontend and backend; default Name
	Controllers []string // URLs that may ever be active; empty: any
	// Slots is how many servers the backend has when Controllers is empty. They get their addresses at run time.
	// Default 3.
	Slots int
	// HoldRequests is how long requests wait in HAProxy's queue while nobody is active; zero: they fail at once (503).
	HoldRequests time.Duration
	Check        string // CheckTCP (default), CheckActive, CheckNone
}

// A Hook is a command that is run at each change of the active controller, for whoever has another proxy. See
// [Change] for what it is told.
type Hook struct {
	Command []string
	Timeout time.Duration // default 10s; then its process group is killed
}

var (
	nameRE       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$`)
	backendRE    = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	socketModeRE = regexp.MustCompile(`^[0-7]{3,4}$`)
)

// complete returns c with its defaults filled in, or everything that is wrong with it.
func (c Config) complete() (Config, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	c.Clusters = append([]Cluster(nil), c.Clusters...)
	c.Hooks = append([]Hook(nil), c.Hooks...)
	if c.Binary == "" {
		c.Binary = "haproxy"
	}
	if c.SocketMode == "" {
		c.SocketMode = "600"
	}
	if c.Reconcile == 0 {
		c.Reconcile = 2 * time.Second
	}
	if c.Reconcile < 100*time.Millisecond {
		bad("haproxy.reconcile: %v is too short; at least 100ms", c.Reconcile)
	}
	if !socketModeRE.MatchString(c.SocketMode) {
		bad("haproxy.socket_mode: %q is not an octal mode such as 600", c.SocketMode)
	}
	if c.ConfigFile == "" {
		if len(c.Hooks) == 0 {
			bad("haproxy.config: is empty and there are no hooks, so there is nothing to do")
		}
		if c.Spawn {
			bad("haproxy.spawn: needs haproxy.config")
		}
	} else {
		for _, f := range []struct{ key, path string }{
			{"config", c.ConfigFile}, {"admin_socket", c.AdminSocket}, {"master_socket", c.MasterSocket}, {"template", c.Template},
		} {
			switch {
			case f.path == "" && f.key == "admin_socket":
				bad("haproxy.admin_socket: is empty; the active is changed through it")
			case f.path == "" && f.key == "master_socket" && c.Spawn:
				bad("haproxy.master_socket: is empty; haproxy.spawn needs it for reloads")
			case f.path != "" && !filepath.IsAbs(f.path):
				bad("haproxy.%s: %q is not an absolute path", f.key, f.path)
			case strings.HasSuffix(f.key, "socket") && len(f.path) > 90:
				bad("haproxy.%s: %q is too long for a Unix socket (90 bytes)", f.key, f.path)
			}
		}
	}
	for _, f := range []struct{ key, val string }{
		{"config", c.ConfigFile},
		{"admin_socket", c.AdminSocket},
		{"master_socket", c.MasterSocket},
		{"stats", c.StatsBind},
		{"user", c.User},
		{"group", c.Group},
	} {
		if strings.ContainsFunc(f.val, unicode.IsControl) {
			bad("haproxy.%s: %q has a control character", f.key, f.val)
		}
		if f.key != "stats" && strings.ContainsAny(f.val, " \t#\"'\\") {
			bad("haproxy.%s: %q has a blank, a quote, a backslash or a #", f.key, f.val)
		}
	}
	if len(c.Clusters) == 0 {
		bad("cluster: is missing")
	}
	names, backends := map[string]bool{}, map[string]bool{}
	for i := range c.Clusters {
		key := clusterKeys(i)
		cl, err := c.Clusters[i].complete(c, key)
		c.Clusters[i] = cl
		if err != nil {
			errs = append(errs, err)
		}
		if names[cl.Name] {
			bad("%s: %q is there twice", key("cluster"), cl.Name)
		}
		if backends[cl.Backend] {
			bad("%s: backend %q is used by another cluster", key("cluster"), cl.Backend)
		}
		names[cl.Name], backends[cl.Backend] = true, true
	}
	for i := range c.Hooks {
		h := &c.Hooks[i]
		if len(h.Command) == 0 || h.Command[0] == "" {
			bad("hooks[%d].command: is missing", i)
		}
		if h.Timeout == 0 {
			h.Timeout = 10 * time.Second
		}
		if h.Timeout < 0 {
			bad("hooks[%d].timeout: %v is negative", i, h.Timeout)
		}
	}
	return c, errors.Join(errs...)
}

// clusterKeys names the settings of the cluster at index i as the configuration file does, where the first cluster is at the
// top and under haproxy, and the others are a list. Whoever shows an error finds file, line and column by that name.
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

// complete returns c with its defaults filled in, or everything that is wrong with it; key names a setting of c.
func (c Cluster) complete(whole Config, key func(setting string) string) (Cluster, error) {
	var errs []error
	bad := func(setting, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key(setting), fmt.Sprintf(format, args...)))
	}
	if !nameRE.MatchString(c.Name) {
		bad("cluster", "%q: a name may have letters, digits, dot, dash and underscore, and begins with a letter or digit", c.Name)
	}
	if c.Backend == "" {
		c.Backend = c.Name
	}
	if !backendRE.MatchString(c.Backend) {
		bad("cluster", "backend %q may have letters, digits, dot, dash and underscore", c.Backend)
	}
	if c.Mode == "" {
		c.Mode = ModeHTTP
	}
	if c.Mode != ModeHTTP && c.Mode != ModeTCP {
		bad("mode", "%q is neither %s nor %s", c.Mode, ModeHTTP, ModeTCP)
	}
	if c.Check == "" {
		c.Check = CheckTCP
	}
	if c.Check != CheckTCP && c.Check != CheckActive && c.Check != CheckNone {
		bad("check", "%q is none of %s, %s, %s", c.Check, CheckTCP, CheckActive, CheckNone)
	}
	if whole.ConfigFile != "" && whole.Template == "" && strings.TrimSpace(c.Bind) == "" {
		bad("bind", "is empty; say where users come in, such as \":8080\"")
	}
	if strings.ContainsFunc(c.Bind, unicode.IsControl) {
		bad("bind", "%q has a control character", c.Bind)
	}
	if c.Slots == 0 {
		c.Slots = 3
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
	seen := map[endpoint]bool{}
	for i, u := range c.Controllers {
		e, err := parseEndpoint(u)
		at := fmt.Sprintf("controllers[%d]", i)
		switch {
		case err != nil:
			bad(at, "%v", err)
		case seen[e]:
			bad(at, "%q is there twice", u)
		case c.tlsMismatch(e, whole):
			bad(at, "%q is https, which mode http of the built-in template can't carry; use mode tcp (TLS is passed through)", u)
		}
		seen[e] = true
	}
	return c, errors.Join(errs...)
}

// tlsMismatch: the built-in template speaks plain HTTP to the controllers in mode http.
func (c Cluster) tlsMismatch(e endpoint, whole Config) bool {
	return e.scheme == "https" && c.Mode == ModeHTTP && whole.ConfigFile != "" && whole.Template == ""
}

// slots returns the backend's servers as the file has them before anything is known.
func (c Cluster) slots() []slot {
	if len(c.Controllers) == 0 {
		s := make([]slot, c.Slots)
		for i := range s {
			s[i] = slot{name: "c" + strconv.Itoa(i+1), host: nowhere.Addr().String(), port: nowhere.Port()}
		}
		return s
	}
	s := make([]slot, 0, len(c.Controllers))
	for _, u := range c.Controllers {
		e, err := parseEndpoint(u)
		if err != nil {
			continue // complete refused it
		}
		s = append(s, slot{name: serverName(e), host: e.host, port: e.port})
	}
	return s
}

// serverName makes a name for statistics and logs that is legal in HAProxy: "10.0.0.11:8080".
func serverName(e endpoint) string {
	return strings.ReplaceAll(e.host, "%", "_") + ":" + strconv.Itoa(int(e.port))
}

func holdSocket(admin, backend string) string {
	return filepath.Join(filepath.Dir(admin), backend+".hold.sock")
}

// AgentCheck returns the line that answers HAProxy's agent-check for a sidecar in state s: "ready up", "drain up",
// "maint" or "down#why". Every answer has both an administrative and a health word where one is needed to revert
// an earlier answer, because HAProxy keeps an agent's words until that agent takes them back. A passive is in
// maintenance, not down. why is for people; what could break the line is removed.
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

// oneLine makes text of unknown origin fit for a log line, an environment variable or a check's answer.
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
