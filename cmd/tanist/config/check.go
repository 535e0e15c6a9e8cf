package config

import (
	"errors"
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

	"github.com/tanist/tanist/election"
)

// at returns the place to show for a path: its own, or that of the nearest key above it that is in the file.
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

// wrong reports a value that can't be. One that could not be read is reported already.
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

// oneOf checks every text that has a tag one.
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
		if strings.HasPrefix(hint, ";") { // nothing is like it
			hint = ""
		}
		d.wrong(path, "%q is not one of %s%s", value, strings.Join(allowed, ", "), hint)
	}
}

// nameRule is what names of clusters, controllers and agents are made of: they become keys, file names and host names.
var nameRule = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

func (d *decoder) name(path, value string) {
	if err := CheckName(value); err != nil {
		d.wrong(path, "%v", err)
	}
}

// CheckName tells what is wrong with the name of a cluster, a controller or an agent, or nil.
func CheckName(value string) error {
	switch {
	case value == "":
		return errors.New("it is missing: give a name")
	case !nameRule.MatchString(value):
		return fmt.Errorf("%.80q is not a name: use 1 to 63 letters, digits, dots, dashes and underscores, beginning and ending with a letter or digit", value)
	}
	return nil
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

// address wants host:port with a number for the port; an empty host is every address of this host.
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

func (d *decoder) url(path, value string) {
	u, err := url.Parse(value)
	switch {
	case value == "":
		d.wrong(path, "it is missing: give the URL, such as http://10.0.0.11:8080")
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "":
		d.wrong(path, "%.200q is not an http or https URL with a host, such as http://10.0.0.11:8080", value)
	case u.User != nil:
		d.wrong(path, "it has a user or password in it, and everybody can read it: remove them")
	}
}

// readable wants a file that can be read, if this is the host for it.
func (d *decoder) readable(path, value string) {
	if !d.away {
		d.needed(path, value)
	}
}

// needed wants a file that can be read.
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

func (d *decoder) store(store string, etcd Etcd, consul Consul) {
	switch store {
	case "etcd":
		if len(etcd.Endpoints) == 0 {
			d.wrong("etcd.endpoints", "it is empty: give the members' client URLs")
		}
		for i, e := range etcd.Endpoints {
			u, err := url.Parse(e)
			if _, _, splitErr := net.SplitHostPort(e); splitErr != nil && (err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https")) {
				d.wrong(fmt.Sprintf("etcd.endpoints[%d]", i), "%q is not a client URL, such as http://10.0.0.1:2379", e)
			} else if err == nil && u.User != nil {
				d.wrong(fmt.Sprintf("etcd.endpoints[%d]", i), "it has a user or password in it: use username and password_file")
			}
		}
		if etcd.Prefix != "/" && (!strings.HasPrefix(etcd.Prefix, "/") || strings.HasSuffix(etcd.Prefix, "/")) {
			d.wrong("etcd.prefix", "%q does not begin with a slash, or ends with one: write it like /tanist", etcd.Prefix)
		}
		d.needed("etcd.password_file", etcd.PasswordFile)
		d.tls("etcd.tls", etcd.TLS)
		if etcd.PasswordFile != "" && etcd.Username == "" {
			d.wrong("etcd.username", "it is missing, and there is a password_file")
		}
	case "consul":
		if consul.Address == "" {
			d.wrong("consul.address", "it is empty: give the address of the local Consul agent")
		}
		u, err := url.Parse(consul.Address)
		isURL := err == nil && ((u.Host != "" && (u.Scheme == "http" || u.Scheme == "https")) || (u.Scheme == "unix" && u.Path != ""))
		if consul.Address != "" && !isURL {
			d.wrong("consul.address", "%q is not a URL: write http://127.0.0.1:8500, or https:// or unix:///path", consul.Address)
		}
		if isURL && u.Scheme != "https" && consul.TLS != (TLS{}) {
			d.wrong("consul.tls", "it is set, and consul.address %s is not https", consul.Address)
		}
		for i, other := range consul.Others {
			key := fmt.Sprintf("consul.others[%d]", i)
			switch o, err := url.Parse(other); {
			case err != nil || o.Host == "" || o.Scheme != "http" && o.Scheme != "https":
				d.wrong(key, "%q is not a URL: write http://10.0.0.12:8500", other)
			case isURL && o.Scheme != u.Scheme:
				d.wrong(key, "it begins with %s://, and consul.address with %s://: give all the same", o.Scheme, u.Scheme)
			}
		}
		if p := consul.Service.ProxyPort; p < 1 || p > 65535 {
			d.wrong("consul.service.proxy_port", "%d is not a port", p)
		}
		d.needed("consul.token_file", consul.TokenFile)
		d.tls("consul.tls", consul.TLS)
		if consul.Service.Name != "" && !nameRule.MatchString(consul.Service.Name) {
			d.wrong("consul.service.name", "%q can't be a service name", consul.Service.Name)
		}
		if consul.Service.Connect && consul.Service.Name == "" {
			d.wrong("consul.service.name", "it is missing, and connect is on")
		}
	}
}

// signals are the ones that can be asked for by name.
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
	d.store(c.Store, c.Etcd, c.Consul)
	d.checkLease(c)
	d.checkStoreLoss(c)
	d.checkRun(c)
	d.checkHealth(c.Health)
	if c.Repository != nil {
		d.checkRepository(c.Repository)
	}
	d.positive("yield_wait", c.YieldWait)
	d.notNegative("failover_interval", c.Interval)
	d.address("listen.http", c.Listen.HTTP)
	d.address("listen.agent_check", c.Listen.AgentCheck)
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
			d.executable(fmt.Sprintf("hooks.%s[%d]", event, i), strings.Fields(command), "", "")
		}
	}
}

// maxSocket is the longest path of a Unix socket, less what is added to it while the socket is made.
const maxSocket = 90

func (d *decoder) checkLease(c *Controller) {
	timing, err := c.Timing()
	if err != nil {
		d.wrong("lease.profile", "%q is not one of default, fast", c.Lease.Profile)
		return
	}
	if err := timing.Validate(Traits(c.Store)); err != nil {
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
		case len(strings.TrimSpace(string(secret))) < 16:
			d.wrong("failsafe.secret_file", "the secret has fewer than 16 characters: make one with `openssl rand -hex 32`")
		}
		d.positive("failsafe.timeout", c.Failsafe.Timeout)
		if c.Listen.HTTP == "" {
			d.wrong("listen.http", "it is empty: on_store_loss failsafe needs the sidecars to reach each other")
		}
	case "keep":
		if c.Repository == nil {
			d.wrong("on_store_loss", "keep lets two controllers run when the store can't be reached, so it needs a fenced repository: configure repository, or choose stop or failsafe")
		}
	}
}

// executable wants a program that can be run in dir with this PATH (empty: our own).
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

// LookPath tells whether a program without a slash in its name is found by a PATH (empty: our own).
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
		}{{"run.command", r.Command}, {"run.stop", r.Stop}, {"run.status", r.Status}, {"run.kill", r.Kill}} {
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
	d.user("run.user", r.User)
	d.signal("run.stop_signal", r.StopSignal)
	d.positive("run.start_timeout", r.StartTimeout)
	d.positive("run.stop_timeout", r.StopTimeout)
	d.notNegative("run.drain", r.Drain)
	d.atLeast("run.restart.local", r.Restart.Local, 0)
	d.positive("run.restart.within", r.Restart.Within)
	d.output("run.output", r.Output)
	d.env("run.env", r.Env)
}

// unitRule is what the name of a service is made of.
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

func (d *decoder) checkHealth(h Health) {
	d.positive("health.interval", h.Interval)
	d.positive("health.timeout", h.Timeout)
	d.atLeast("health.rise", h.Rise, 1)
	d.atLeast("health.fall", h.Fall, 1)
	names := map[string]bool{}
	for i, c := range h.Checks {
		path := fmt.Sprintf("health.checks[%d]", i)
		if c.Name == "" {
			d.wrong(path+".name", "it is missing: the name tells checks apart in logs and status")
		}
		if names[c.Name] {
			d.wrong(path+".name", "%q is the name of another check", c.Name)
		}
		names[c.Name] = true
		kinds := 0
		for _, set := range []bool{c.HTTP != "", c.TCP != "", len(c.Exec) > 0, c.GRPC != "", c.Postgres != ""} {
			if set {
				kinds++
			}
		}
		if kinds != 1 {
			d.wrong(path, "give exactly one of http, tcp, exec, grpc, postgres")
		}
		if c.HTTP != "" {
			d.url(path+".http", c.HTTP)
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
		for j, e := range c.Expect {
			if n, err := strconv.Atoi(e); err != nil || n < 100 || n > 599 {
				d.wrong(fmt.Sprintf("%s.expect[%d]", path, j), "%q is not a status code, such as 200", e)
			}
		}
		if len(c.Expect) > 0 && c.HTTP == "" {
			d.wrong(path+".expect", "it is of checks by http")
		}
		if c.Service != "" && c.GRPC == "" {
			d.wrong(path+".service", "it is of checks by grpc")
		}
	}
}

func (d *decoder) checkRepository(r *Repository) {
	if r.DSNFile == "" {
		d.wrong("repository.dsn_file", "it is missing: the file holds how the sidecar itself logs in at the repository")
	}
	d.readable("repository.dsn_file", r.DSNFile)
	if r.Role == "" {
		d.wrong("repository.role", "it is missing: the login role of this controller's program")
	}
	if env := r.Secret.Env; env != "" && !envRule.MatchString(env) {
		d.wrong("repository.secret.env", "%q can't be the name of a variable", env)
	}
	if f := r.Secret.Passfile; f != "" && !filepath.IsAbs(f) {
		d.wrong("repository.secret.passfile", "%q is not an absolute path", f)
	}
	d.positive("repository.give_up", r.GiveUp)
	kinds := 0
	for _, set := range []bool{r.Secret.Env != "", r.Secret.Passfile != "", r.Secret.File != nil, r.Secret.Gate != nil} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		d.wrong("repository.secret", "give exactly one of env, passfile, file, gate: how the program gets its secret")
	}
	if f := r.Secret.File; f != nil {
		d.readable("repository.secret.file.template", f.Template)
		if f.Template == "" || f.Path == "" {
			d.wrong("repository.secret.file", "give both template and path")
		}
	}
	if g := r.Secret.Gate; g != nil {
		if path, unix := strings.CutPrefix(g.Listen, "unix:"); !unix {
			d.address("repository.secret.gate.listen", g.Listen)
		} else if !filepath.IsAbs(path) {
			d.wrong("repository.secret.gate.listen", "%q has no absolute path after unix:", g.Listen)
		}
		d.readable("repository.secret.gate.password_file", g.PasswordFile)
		if g.Listen == "" {
			d.wrong("repository.secret.gate.listen", "it is missing: where the program connects to, such as 127.0.0.1:6432")
		}
	}
}

func (d *decoder) checkAgent(a *Agent) {
	d.name("cluster", a.Cluster)
	d.name("name", a.Name)
	d.store(a.Store, a.Etcd, a.Consul)
	switch {
	case a.Run == nil && len(a.Agents) == 0:
		d.wrong("run", "it is missing: run.command says what the agent is")
	case a.Run != nil && len(a.Agents) > 0:
		d.wrong("agents", "give either run, for one agent, or agents, for many")
	case a.Run != nil:
		d.checkAgentRun("run", *a.Run)
	}
	d.checkOnChange("on_change", a.OnChange)
	names := map[string]bool{}
	for i, one := range a.Agents {
		path := fmt.Sprintf("agents[%d]", i)
		d.name(path+".name", one.Name)
		if names[one.Name] {
			d.wrong(path+".name", "%q is the name of another agent", one.Name)
		}
		names[one.Name] = true
		d.checkAgentRun(path+".run", one.Run)
		if one.OnChange != nil {
			d.checkOnChange(path+".on_change", *one.OnChange)
		}
	}
	d.positive("probe.interval", a.Probe.Interval)
	d.positive("probe.timeout", a.Probe.Timeout)
	d.atLeast("probe.fall", a.Probe.Fall, 1)
	for i, u := range a.Controllers {
		d.url(fmt.Sprintf("controllers[%d]", i), u)
	}
	for i, u := range a.Sidecars {
		d.url(fmt.Sprintf("sidecars[%d]", i), u)
	}
	d.atLeast("retries.count", a.Retries.Count, 0)
	d.positive("retries.every", a.Retries.Every)
	// Consul's sessions have 10 s at least; an agent that is gone for longer than minutes should not look alive.
	if a.PresenceTTL < 10*time.Second || a.PresenceTTL > 10*time.Minute {
		d.wrong("presence_ttl", "%v is not between 10s and 10m", a.PresenceTTL)
	}
	d.address("listen.http", a.Listen.HTTP)
}

func (d *decoder) checkAgentRun(path string, r AgentRun) {
	// The program may be a template itself.
	if len(r.Command) == 0 || r.Command[0] == "" {
		d.wrong(path+".command", "it is empty: give the agent and its arguments, such as [/opt/orders/bin/agent, --server, \"{{ .Active.URL }}\"]")
	} else if !strings.Contains(r.Command[0], "{{") {
		d.executable(path+".command", r.Command, r.Dir, r.Env["PATH"])
	}
	d.signal(path+".stop_signal", r.StopSignal)
	d.positive(path+".stop_timeout", r.StopTimeout)
	d.user(path+".user", r.User)
	d.output(path+".output", r.Output)
	d.env(path+".env", r.Env)
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
			d.wrong(path+".exec", "it is missing: the command that tells the agent")
		}
	default:
		d.among(path+".action", o.Action, "restart", "signal:HUP", "exec")
	}
}

func (d *decoder) checkHAProxy(h *HAProxy) {
	d.name("cluster", h.Cluster)
	d.store(h.Store, h.Etcd, h.Consul)
	d.name("name", h.Name)
	d.atLeast("haproxy.slots", h.HAProxy.Slots, 1)
	d.positive("haproxy.reconcile", h.HAProxy.Reconcile)
	d.readable("haproxy.template", h.HAProxy.Template)
	for i, u := range h.Controllers {
		d.url(fmt.Sprintf("controllers[%d]", i), u)
	}
	names := map[string]bool{h.Cluster: true}
	for i, v := range h.Clusters {
		path := fmt.Sprintf("clusters[%d]", i)
		d.name(path+".cluster", v.Cluster)
		if names[v.Cluster] {
			d.wrong(path+".cluster", "%q is there already", v.Cluster)
		}
		names[v.Cluster] = true
		if v.Bind == "" {
			d.wrong(path+".bind", "it is missing: where users reach this cluster")
		}
	}
	for i, hook := range h.Hooks {
		d.executable(fmt.Sprintf("hooks[%d].command", i), hook.Command, "", "")
		d.positive(fmt.Sprintf("hooks[%d].timeout", i), hook.Timeout)
	}
	d.address("listen.http", h.Listen.HTTP)
}

// Timing returns the timing that a controller's file asks for.
func (c *Controller) Timing() (election.Timing, error) {
	t, err := Profile(c.Store, c.Lease.Profile)
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

// FileMode reads a mode such as "0640".
func FileMode(text string) (os.FileMode, error) {
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode > 0o777 {
		return 0, fmt.Errorf("cannot read the mode %q", text)
	}
	return os.FileMode(mode), nil
}
