package config

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/token"
	"golang.org/x/net/http/httpguts"

	consulstore "github.com/tanist/tanist/backends/consul"
	etcdstore "github.com/tanist/tanist/backends/etcd"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/plugin/host"
	"github.com/tanist/tanist/postgres"
)

// at returns the position for a path: its own, or that of its nearest ancestor in the file.
func (d *decoder) at(path string) *token.Position {
	for {
		if at, ok := d.where[path]; ok && at != nil {
			return at
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			return &token.Position{Line: 1, Column: 1}
		}
		path = path[:cut]
	}
}

// wrong reports an invalid value. An unreadable value has already been reported.
func (d *decoder) wrong(path, format string, args ...any) {
	if slices.ContainsFunc(d.problems, func(p Problem) bool { return p.Key == path }) {
		return
	}
	if origin := d.origin[path]; strings.HasPrefix(origin, "$") || strings.HasPrefix(origin, "--") {
		d.problems = append(d.problems, Problem{Where: origin, Key: path, What: fmt.Sprintf(format, args...)})
		return
	}
	d.problem(d.at(path), path, format, args...)
}

// oneOf checks every text with a tag one.
func (d *decoder) oneOf(v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			d.oneOf(v.Elem(), path)
		}
	case reflect.Slice:
		for i := range v.Len() {
			d.oneOf(v.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
	case reflect.Struct:
		for f, value := range v.Fields() {
			key := f.Tag.Get("yaml")
			if key == "" {
				continue
			}
			if allowed := strings.Fields(f.Tag.Get("one")); len(allowed) > 0 {
				if name, ok := strings.CutPrefix(value.String(), election.PluginPrefix); ok && slices.Contains(allowed, anyPlugin) {
					if err := host.CheckName(name); err != nil {
						d.wrong(join(path, key), "%v", err)
					}
					continue
				}
				d.among(join(path, key), value.String(), allowed...)
			} else {
				d.oneOf(value, join(path, key))
			}
		}
	}
}

func (d *decoder) among(path, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		hint := suggest(value, allowed)
		if strings.HasPrefix(hint, ";") { // no key is similar
			hint = ""
		}
		d.wrong(path, "%q is not one of %s%s", value, strings.Join(allowed, ", "), hint)
	}
}

func (d *decoder) name(path, value string) {
	if err := election.CheckName(value); err != nil {
		d.wrong(path, "%v", err)
	}
}

func (d *decoder) positive(path string, v time.Duration) {
	if v <= 0 {
		d.wrong(path, "it must be more than zero")
	}
}

func (d *decoder) notNegative(path string, v time.Duration) {
	if v < 0 {
		d.wrong(path, "it must not be less than zero")
	}
}

func (d *decoder) atLeast(path string, v, least int) {
	if v < least {
		d.wrong(path, "%d is less than %d", v, least)
	}
}

// address requires host:port with a numeric port; an empty host means every address of this host.
func (d *decoder) address(path, value string) {
	if value == "" {
		return
	}
	_, port, err := net.SplitHostPort(value)
	if err != nil {
		d.wrong(path, "%q is not an address: write host:port, such as 127.0.0.1:8710", value)
		return
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		d.wrong(path, "%q has no port between 0 and 65535", value)
	}
}

// web requires of a REST interface that other hosts reach a secret, or the permission to do without.
// Proved are those of whom another key asks for one.
func (d *decoder) web(l Web, proved bool) {
	d.address("listen.http", l.HTTP)
	switch l.Open {
	case "", "answers", "all":
	default:
		d.wrong("listen.open", "%q is not one of answers, all", l.Open)
	}
	if l.SecretFile != "" && !d.away {
		secret, err := os.ReadFile(l.SecretFile)
		if err == nil {
			err = election.Secret(strings.TrimSpace(string(secret))).Validate()
		}
		if err != nil {
			d.wrong("listen.secret_file", "%v", err)
		}
	}
	host, _, err := net.SplitHostPort(l.HTTP)
	if err == nil && !loopback(host) && !proved && l.SecretFile == "" && l.Open == "" {
		d.wrong("listen.http", "other hosts reach %s, and it asks nobody for a secret: listen on 127.0.0.1, or set listen.secret_file, or allow it with"+
			" listen.open: answers (yes or no for load balancers) or all (everything, for everybody)", l.HTTP)
	}
}

// url requires a URL that the followers of the role key accept.
func (d *decoder) url(path, value string) {
	if _, err := election.ParseURL(value); err != nil {
		d.wrong(path, "%v", err)
	}
}

// checkURL requires a URL that only this host uses, such as a health check's.
func (d *decoder) checkURL(path, value string) {
	u, err := url.Parse(value)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "":
		d.wrong(path, "%.200q is not an http or https URL with a host, such as http://10.0.0.11:8080", value)
	case u.User != nil:
		d.wrong(path, "it has a user or password in it, and everybody can read it: remove them")
	}
}

// readable requires a readable file, if this is the file's host.
func (d *decoder) readable(path, value string) {
	if !d.away {
		d.needed(path, value)
	}
}

// needed requires a readable file.
func (d *decoder) needed(path, value string) {
	if value == "" {
		return
	}
	f, err := os.Open(value)
	if err != nil {
		d.wrong(path, "%v", err)
		return
	}
	f.Close()
}

func (d *decoder) tls(path string, t TLS) {
	d.needed(path+".ca_file", t.CAFile)
	d.needed(path+".cert_file", t.CertFile)
	d.needed(path+".key_file", t.KeyFile)
	if (t.CertFile == "") != (t.KeyFile == "") {
		d.wrong(path, "cert_file and key_file belong together: give both or none")
	}
}

// store checks the parts that concern this host; the store's own package checks the rest.
func (d *decoder) store(store string, etcd Etcd, consul Consul, server Postgres) {
	switch store {
	case "etcd":
		if len(etcd.Endpoints) == 0 {
			d.wrong("etcd.endpoints", "it is empty: give the members' client URLs")
		}
		for i, e := range etcd.Endpoints {
			if err := etcdstore.CheckEndpoint(e); err != nil {
				d.wrong(fmt.Sprintf("etcd.endpoints[%d]", i), "%v", err)
			} else if slices.Index(etcd.Endpoints, e) < i {
				d.wrong(fmt.Sprintf("etcd.endpoints[%d]", i), "%s is listed twice", e)
			}
		}
		if etcd.Prefix != "/" && (!strings.HasPrefix(etcd.Prefix, "/") || strings.HasSuffix(etcd.Prefix, "/")) {
			d.wrong("etcd.prefix", "%q does not begin with a slash, or ends with one: write it like /tanist", etcd.Prefix)
		}
		d.needed("etcd.password_file", etcd.PasswordFile)
		d.tls("etcd.tls", etcd.TLS)
	case "consul":
		if err := consulstore.CheckAddress(consul.Address); err != nil {
			d.wrong("consul.address", "%v", err)
		} else if !strings.HasPrefix(consul.Address, "https:") && consul.TLS != (TLS{}) {
			d.wrong("consul.tls", "it is set, and consul.address %s is not https", consul.Address)
		}
		for i, other := range consul.Others {
			if err := consulstore.CheckOther(other, consul.Address); err != nil {
				d.wrong(fmt.Sprintf("consul.others[%d]", i), "%v", err)
			}
		}
		if p := consul.Service.ProxyPort; p < 1 || p > 65535 {
			d.wrong("consul.service.proxy_port", "%d is not a port", p)
		}
		d.needed("consul.token_file", consul.TokenFile)
		d.tls("consul.tls", consul.TLS)
		if consul.Service.Name != "" && election.CheckName(consul.Service.Name) != nil {
			d.wrong("consul.service.name", "%q can't be a service name", consul.Service.Name)
		}
		if consul.Service.Connect && consul.Service.Name == "" {
			d.wrong("consul.service.name", "it is missing, and connect is on")
		}
	case "postgres":
		d.server(server)
	}
}

// anyPlugin is the value of a tag one that stands for the name of any plugin.
const anyPlugin = election.PluginPrefix + "NAME"

// plugins checks what a file has about plugins, and that the store's is on this host.
func (d *decoder) plugins(store string, plugins map[string]Plugin, dirs []string) {
	for i, dir := range dirs {
		if !filepath.IsAbs(dir) {
			d.wrong(fmt.Sprintf("plugin_dirs[%d]", i), "%q is not an absolute path", dir)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(plugins)) {
		path := join("plugins", name)
		if err := host.CheckName(name); err != nil {
			d.wrong(path, "%v", err)
		}
		if sum := plugins[name].SHA256; sum != "" && !sumRule.MatchString(sum) {
			d.wrong(path+".sha256", "%q is not a SHA-256 checksum of 64 hexadecimal digits", sum)
		}
	}
	if name, ok := strings.CutPrefix(store, election.PluginPrefix); ok && !d.away {
		d.plugin("store", name, plugins, dirs)
	}
}

var sumRule = regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)

// plugin checks that a plugin that a key names could be started.
func (d *decoder) plugin(path, name string, plugins map[string]Plugin, dirs []string) {
	if len(d.problems) > 0 { // the directories or the checksum may be what is wrong
		return
	}
	if err := host.Check(name, dirs, plugins[name].SHA256); err != nil {
		d.wrong(path, "plugin %s: %v", name, err)
	}
}

// TraitsOf returns what is expected of the store of a file.
func TraitsOf(store string, plugins map[string]Plugin) election.Traits {
	t := election.TraitsOf(store)
	if name, ok := strings.CutPrefix(store, election.PluginPrefix); ok {
		p := plugins[name]
		t.MinTTL, t.ExpirySlack, t.LeaderGap = cmp.Or(p.MinTTL, t.MinTTL), cmp.Or(p.ExpirySlack, t.ExpirySlack), cmp.Or(p.LeaderGap, t.LeaderGap)
	}
	return t
}

// server checks where the store's PostgreSQL server is. A file with the connection string may hold
// its password, and the configuration may not, because people print it.
func (d *decoder) server(p Postgres) {
	if p.DSN != "" && p.DSNFile != "" {
		d.wrong("postgres.dsn", "give either dsn or dsn_file")
	}
	if err := postgres.CheckDSN(p.DSN); err != nil {
		d.wrong("postgres.dsn", "%v", err)
	} else if postgres.HasPassword(p.DSN) {
		d.wrong("postgres.dsn", "it holds a password: use password_file, or dsn_file for the whole connection string")
	}
	d.needed("postgres.dsn_file", p.DSNFile)
	d.needed("postgres.password_file", p.PasswordFile)
}

// signals are the signals that a file may name.
var signals = []string{"TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH", "KILL"}

func (d *decoder) signal(path, name string) {
	if !slices.Contains(signals, strings.TrimPrefix(name, "SIG")) {
		d.wrong(path, "%q is not a signal: one of %s", name, strings.Join(signals, ", "))
	}
}

func (d *decoder) user(path, name string) {
	if name == "" || d.away {
		return
	}
	if _, err := user.Lookup(name); err != nil {
		if _, err := user.LookupId(name); err != nil {
			d.wrong(path, "there is no user %q on this host", name)
		}
	}
}

func (d *decoder) output(path, value string) {
	file, isFile := strings.CutPrefix(value, "file:")
	switch {
	case value == "inherit", value == "log", value == "journal":
	case isFile && filepath.IsAbs(file):
	default:
		d.wrong(path, "%q is not one of inherit, log, journal, file:/absolute/path", value)
	}
}

func (d *decoder) checkController(c *Controller) {
	d.name("cluster", c.Cluster)
	d.name("name", c.Name)
	d.store(c.Store, c.Etcd, c.Consul, c.Postgres)
	d.plugins(c.Store, c.Plugins, c.PluginDirs)
	d.checkLease(c)
	d.checkStoreLoss(c)
	d.checkRun(c)
	d.checkHealth(c)
	d.checkFit(c)
	d.checkNotify(c.Notify)
	if c.Repository != nil {
		d.checkRepository(c.Repository)
	}
	d.positive("yield_wait", c.YieldWait)
	d.notNegative("failover_interval", c.Interval)
	d.web(Web{HTTP: c.Listen.HTTP, SecretFile: c.Listen.SecretFile, Open: c.Listen.Open}, c.OnStoreLoss == "failsafe")
	d.address("listen.agent_check", c.Listen.AgentCheck)
	d.checkAccess(c.Listen)
	switch {
	case c.Listen.Admin == "":
	case !strings.HasPrefix(c.Listen.Admin, "unix:/"):
		d.wrong("listen.admin", "%q is not a Unix socket: write unix:/run/tanist/NAME.sock", c.Listen.Admin)
	case len(c.Listen.Admin) > len("unix:")+maxSocket:
		d.wrong("listen.admin", "the path has more than %d bytes, which no Unix socket can have", maxSocket)
	}
	if !filepath.IsAbs(c.StateDir) {
		d.wrong("state_dir", "%q is not an absolute path", c.StateDir)
	}
	if c.Listen.Advertise != "" {
		d.url("listen.advertise", c.Listen.Advertise)
	}
	for event, commands := range c.Hooks.Commands() {
		for i, command := range commands {
			d.executable(fmt.Sprintf("hooks.%s[%d]", event, i), command, "", "")
		}
	}
}

// maxSocket is the longest path of a Unix socket, minus the suffix that is added while the socket
// is created.
const maxSocket = 90

func (d *decoder) checkLease(c *Controller) {
	timing, err := c.Timing()
	if err != nil {
		d.wrong("lease.profile", "%q is not one of default, fast", c.Lease.Profile)
		return
	}
	if err := timing.Validate(TraitsOf(c.Store, c.Plugins)); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			path := "lease"
			if first, _, _ := strings.Cut(line, " "); strings.HasPrefix(first, "lease.") {
				path = first
			}
			d.wrong(path, "%s", line)
		}
	}
}

func (d *decoder) checkStoreLoss(c *Controller) {
	switch c.OnStoreLoss {
	case "failsafe":
		switch secret, err := os.ReadFile(c.Failsafe.SecretFile); {
		case c.Failsafe.SecretFile == "":
			d.wrong("failsafe.secret_file", "it is missing: on_store_loss failsafe needs a secret that the cluster's sidecars share")
		case d.away:
		case err != nil:
			d.wrong("failsafe.secret_file", "%v", err)
		default:
			if err := election.Secret(strings.TrimSpace(string(secret))).Validate(); err != nil {
				d.wrong("failsafe.secret_file", "%v", err)
			}
		}
		d.positive("failsafe.timeout", c.Failsafe.Timeout)
		if c.Listen.HTTP == "" {
			d.wrong("listen.http", "it is empty: on_store_loss failsafe needs the sidecars to reach each other")
		} else {
			d.reachable(c)
		}
	case "keep":
		if c.Repository == nil {
			d.wrong("on_store_loss", "keep lets two controllers run when the store can't be reached, so it needs a fenced repository: configure repository, or choose stop or failsafe")
		}
	}
}

// reachable requires an address at which the sidecars of other hosts reach this one. A cluster
// whose controllers all serve on loopback has only one host.
func (d *decoder) reachable(c *Controller) {
	if u, err := url.Parse(c.Run.URL); err == nil && loopback(u.Hostname()) {
		return
	}
	key, host := "listen.http", ""
	if c.Listen.Advertise != "" {
		if u, err := url.Parse(c.Listen.Advertise); err == nil {
			key, host = "listen.advertise", u.Hostname()
		}
	} else if h, _, err := net.SplitHostPort(c.Listen.HTTP); err == nil {
		host = h
	}
	switch ip := net.ParseIP(host); {
	case host == "" || (ip != nil && ip.IsUnspecified()):
		d.wrong("listen.advertise", "it is missing: listen.http %s names no host, and on_store_loss failsafe needs one that the other sidecars reach", c.Listen.HTTP)
	case loopback(host):
		d.wrong(key, "%s is this host itself, and on_store_loss failsafe needs an address that the other sidecars reach", host)
	}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// executable requires a program that can be run in dir with this PATH (empty: our own).
func (d *decoder) executable(path string, command []string, dir, search string) {
	if len(command) == 0 || command[0] == "" {
		d.wrong(path, "it is empty: give the program and its arguments, such as [/opt/orders/bin/ordersd, --port, \"8080\"]")
		return
	}
	program := command[0]
	if d.away {
		return
	}
	if !strings.Contains(program, "/") {
		if err := LookPath(program, search); err != nil {
			d.wrong(path, "%v: give the whole path of the program", err)
		}
		return
	}
	if !filepath.IsAbs(program) {
		program = filepath.Join(dir, program)
	}
	info, err := os.Stat(program)
	switch {
	case err != nil:
		d.wrong(path, "%v", err)
	case info.IsDir() || info.Mode()&0o111 == 0:
		d.wrong(path, "%s is not an executable file", program)
	}
}

// LookPath reports whether a program without a slash in its name is found in a PATH (empty: our
// own).
func LookPath(program, search string) error {
	if search == "" || strings.Contains(search, "{{") { // an agent's variables may be templates
		_, err := exec.LookPath(program)
		return err
	}
	for _, dir := range filepath.SplitList(search) {
		if info, err := os.Stat(filepath.Join(dir, program)); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return nil
		}
	}
	return fmt.Errorf("there is no program %q in the PATH %s", program, search)
}

func (d *decoder) checkRun(c *Controller) {
	r := c.Run
	if r.Driver == "systemd" {
		if !unitRule.MatchString(r.Unit) {
			d.wrong("run.unit", "%q is not the name of a service: driver systemd needs one, such as orders.service", r.Unit)
		}
	} else {
		for _, c := range []struct {
			key     string
			command []string
		}{{"run.command", r.Command}, {"run.migrate.command", r.Migrate.Command}, {"run.stop", r.Stop}, {"run.status", r.Status}, {"run.kill", r.Kill}} {
			if len(c.command) > 0 || c.key == "run.command" {
				d.executable(c.key, c.command, r.Dir, r.Env["PATH"])
			}
		}
	}
	// A key that would have no effect is a mistake.
	for _, k := range []struct {
		key     string
		drivers string
		set     bool
	}{
		{"run.command", "exec script", len(r.Command) > 0},
		{"run.env", "exec script", len(r.Env) > 0},
		{"run.dir", "exec script", r.Dir != ""},
		{"run.user", "exec script", r.User != ""},
		{"run.migrate", "exec script", len(r.Migrate.Command) > 0},
		{"run.stop", "script", len(r.Stop) > 0},
		{"run.status", "script", len(r.Status) > 0},
		{"run.kill", "script", len(r.Kill) > 0},
		{"run.pid_file", "script", r.PIDFile != ""},
		{"run.unit", "systemd", r.Unit != ""},
		{"run.env_file", "systemd", r.EnvFile != ""},
	} {
		if k.set && !slices.Contains(strings.Fields(k.drivers), r.Driver) {
			d.wrong(k.key, "it has no effect with driver %s, only with %s", r.Driver, strings.Join(strings.Fields(k.drivers), " and "))
		}
	}
	for key, path := range map[string]string{"run.dir": r.Dir, "run.pid_file": r.PIDFile, "run.env_file": r.EnvFile} {
		if path != "" && !filepath.IsAbs(path) {
			d.wrong(key, "%q is not an absolute path", path)
		}
	}
	d.url("run.url", r.URL)
	if main, err := election.ParseURL(r.URL); err == nil {
		if _, err := election.NewURLs(main, r.URLs); err != nil {
			d.wrong("run.urls", "%v", err)
		}
	}
	d.user("run.user", r.User)
	d.signal("run.stop_signal", r.StopSignal)
	d.positive("run.migrate.timeout", r.Migrate.Timeout)
	d.positive("run.start_timeout", r.StartTimeout)
	d.positive("run.stop_timeout", r.StopTimeout)
	d.notNegative("run.kill_timeout", r.KillTimeout)
	d.notNegative("run.drain", r.Drain)
	d.atLeast("run.restart.local", r.Restart.Local, 0)
	d.positive("run.restart.within", r.Restart.Within)
	d.output("run.output", r.Output)
	d.env("run.env", r.Env)
	d.envFrom("run.env_from", r.EnvFrom)
	d.oomScore("run.oom_score_adj", r.OOMScoreAdj)
}

// unitRule describes a valid service name.
var unitRule = regexp.MustCompile(`^[A-Za-z0-9:_.@\\-]+\.service$`)

// env checks the names of variables.
func (d *decoder) env(path string, env map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(env)) {
		if !envRule.MatchString(key) {
			d.wrong(path+"."+key, "%q can't be the name of a variable", key)
		}
	}
}

var envRule = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (d *decoder) checkHealth(of *Controller) {
	for i, c := range of.Health.Checks {
		path := fmt.Sprintf("health.checks[%d]", i)
		kinds := 0
		for _, set := range []bool{c.HTTP != "", c.TCP != "", len(c.Exec) > 0, c.GRPC != "", c.Postgres != "", c.Plugin != ""} {
			if set {
				kinds++
			}
		}
		if kinds != 1 {
			d.wrong(path, "give exactly one of http, tcp, exec, grpc, postgres, plugin")
		}
		if c.HTTP != "" {
			d.checkURL(path+".http", c.HTTP)
		}
		if c.TCP != "" {
			d.address(path+".tcp", c.TCP)
		}
		if c.GRPC != "" {
			d.address(path+".grpc", c.GRPC)
		}
		if len(c.Exec) > 0 {
			d.executable(path+".exec", c.Exec, "", "")
		}
		d.readable(path+".postgres", c.Postgres)
		if c.Plugin != "" && !d.away {
			d.plugin(path+".plugin", c.Plugin, of.Plugins, of.PluginDirs)
		}
		d.checkAnswer(path, c)
	}
}

// checkFit checks the commands that a passive runs.
func (d *decoder) checkFit(c *Controller) {
	names := map[string]bool{}
	for i, f := range c.Fit {
		path := fmt.Sprintf("fit[%d]", i)
		switch {
		case f.Name == "":
			d.wrong(path+".name", "it is missing: the name identifies the check in logs and status")
		case names[f.Name]:
			d.wrong(path+".name", "%q is the name of another check", f.Name)
		}
		names[f.Name] = true
		d.executable(path+".command", f.Command, c.Run.Dir, c.Run.Env["PATH"])
		d.positive(path+".interval", f.Interval)
		d.positive(path+".timeout", f.Timeout)
	}
}

// checkAnswer checks what a check expects, and that no key of another kind of check is set.
func (d *decoder) checkAnswer(path string, c Check) {
	for j, e := range c.Expect {
		if n, err := strconv.Atoi(e); err != nil || n < 100 || n > 599 {
			d.wrong(fmt.Sprintf("%s.expect[%d]", path, j), "%q is not a status code, such as 200", e)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(c.Headers[name]) {
			d.wrong(path+".headers."+name, "it can't be a header of a request")
		}
	}
	if c.Method == "HEAD" && c.ExpectBody != "" {
		d.wrong(path+".expect_body", "the response to HEAD has no body")
	}
	if c.TLS != nil {
		d.readable(path+".tls.ca_file", c.TLS.CAFile)
		d.readable(path+".tls.cert_file", c.TLS.CertFile)
		d.readable(path+".tls.key_file", c.TLS.KeyFile)
	}
	for _, k := range []struct {
		key, kinds string
		set, may   bool
	}{
		{"method", "http", c.Method != "GET", c.HTTP != ""},
		{"headers", "http", len(c.Headers) > 0, c.HTTP != ""},
		{"expect", "http", len(c.Expect) > 0, c.HTTP != ""},
		{"expect_body", "http", c.ExpectBody != "", c.HTTP != ""},
		{"service", "grpc", c.Service != "", c.GRPC != ""},
		{"config", "plugin", len(c.Config) > 0, c.Plugin != ""},
		{"tls", "https, tcp and grpc", c.TLS != nil, strings.HasPrefix(c.HTTP, "https:") || c.TCP != "" || c.GRPC != ""},
	} {
		if k.set && !k.may {
			d.wrong(path+"."+k.key, "it is of checks by %s", k.kinds)
		}
	}
}

// checkRepository checks the files that only this package reads. Package postgres checks the rest.
func (d *decoder) checkRepository(r *Repository) {
	if r.DSNFile == "" {
		d.wrong("repository.dsn_file", "it is missing: the file holds how the sidecar itself logs in at the repository")
	}
	d.readable("repository.dsn_file", r.DSNFile)
	d.positive("repository.give_up", r.GiveUp) // a fence without a bound is for programs, not for files
	if g := r.Secret.Gate; g != nil {
		d.readable("repository.secret.gate.password_file", g.PasswordFile)
	}
}

func (d *decoder) checkAgent(a *Agent) {
	d.name("cluster", a.Cluster)
	d.name("name", a.Name)
	d.store(a.Store, a.Etcd, a.Consul, a.Postgres)
	d.plugins(a.Store, a.Plugins, a.PluginDirs)
	switch {
	case a.Run == nil && len(a.Agents) == 0:
		d.wrong("run", "it is missing: run.command starts the agent")
	case a.Run != nil && len(a.Agents) > 0:
		d.wrong("agents", "give either run, for one agent, or agents, for many")
	case a.Run != nil:
		d.checkAgentRun("run", *a.Run)
	}
	d.checkOnChange("on_change", a.OnChange)
	for i, one := range a.Agents {
		path := fmt.Sprintf("agents[%d]", i)
		d.name(path+".name", one.Name)
		d.checkAgentRun(path+".run", one.Run)
		if one.OnChange != nil {
			d.checkOnChange(path+".on_change", *one.OnChange)
		}
	}
	d.web(a.Listen, false)
}

func (d *decoder) checkAgentRun(path string, r AgentRun) {
	// The program may be a template itself.
	if len(r.Command) == 0 || r.Command[0] == "" {
		d.wrong(path+".command", "it is empty: give the agent and its arguments, such as [/opt/orders/bin/agent, --server, \"{{ .Active.URL }}\"]")
	} else if !strings.Contains(r.Command[0], "{{") {
		d.executable(path+".command", r.Command, r.Dir, r.Env["PATH"])
	}
	d.signal(path+".stop_signal", r.StopSignal)
	d.user(path+".user", r.User)
	d.output(path+".output", r.Output)
	d.env(path+".env", r.Env)
	d.envFrom(path+".env_from", r.EnvFrom)
	d.oomScore(path+".oom_score_adj", r.OOMScoreAdj)
	for i, f := range r.Files {
		p := fmt.Sprintf("%s.files[%d]", path, i)
		if f.Template == "" || f.Path == "" {
			d.wrong(p, "give both template and path")
		}
		d.readable(p+".template", f.Template)
		if _, err := FileMode(f.Mode); err != nil {
			d.wrong(p+".mode", "%q is not a mode: write it in quotes, such as \"0640\"", f.Mode)
		}
	}
}

func (d *decoder) checkOnChange(path string, o OnChange) {
	name, isSignal := strings.CutPrefix(o.Action, "signal:")
	switch {
	case isSignal:
		d.signal(path+".action", name)
	case o.Action == "exec":
		if len(o.Exec) == 0 {
			d.wrong(path+".exec", "it is missing: the command that notifies the agent")
		}
	default:
		d.among(path+".action", o.Action, "restart", "signal:HUP", "exec")
	}
}

func (d *decoder) checkHAProxy(h *HAProxy) {
	d.name("cluster", h.Cluster)
	d.store(h.Store, h.Etcd, h.Consul, h.Postgres)
	d.plugins(h.Store, h.Plugins, h.PluginDirs)
	d.name("name", h.Name)
	d.readable("haproxy.template", h.HAProxy.Template)
	for i, v := range h.Clusters {
		d.name(fmt.Sprintf("clusters[%d].cluster", i), v.Cluster)
	}
	for i, hook := range h.Hooks {
		d.executable(fmt.Sprintf("hooks[%d].command", i), hook.Command, "", "")
		d.positive(fmt.Sprintf("hooks[%d].timeout", i), hook.Timeout)
	}
	d.web(h.Listen, false)
}

func (d *decoder) checkVIP(v *VIP) {
	d.name("cluster", v.Cluster)
	d.store(v.Store, v.Etcd, v.Consul, v.Postgres)
	d.plugins(v.Store, v.Plugins, v.PluginDirs)
	d.name("name", v.Name)
	if v.Controller == "" {
		d.wrong("controller", "it is missing: the controller whose address is on this host")
	} else {
		d.name("controller", v.Controller)
	}
	if len(v.VirtualIP) == 0 {
		d.wrong("virtual_ip", "it is empty: list the addresses, such as {address: 10.0.0.100/24, interface: eth0}")
	}
	d.web(v.Listen, false)
}

// Timing returns the timing of a controller's file.
func (c *Controller) Timing() (election.Timing, error) {
	t, err := TraitsOf(c.Store, c.Plugins).Profile(c.Lease.Profile)
	if err != nil {
		return t, err
	}
	for _, o := range []struct {
		to   *time.Duration
		from time.Duration
	}{
		{&t.TTL, c.Lease.TTL},
		{&t.Validity, c.Lease.Validity},
		{&t.RenewEvery, c.Lease.RenewEvery},
		{&t.StopBudget, c.Lease.StopBudget},
		{&t.Silence, c.Lease.Silence},
	} {
		if o.from > 0 {
			*o.to = o.from
		}
	}
	t.LeaderChange = t.LeaderChange || c.Lease.LeaderChange
	return t, nil
}

// FileMode parses a mode such as "0640".
func FileMode(text string) (os.FileMode, error) {
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode > 0o777 {
		return 0, fmt.Errorf("cannot read the mode %q", text)
	}
	return os.FileMode(mode), nil
}
