package config

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/token"
)

// Loaded is a configuration without problems. Exactly one of Controller, Agent and HAProxy is set.
type Loaded struct {
	Kind       Kind
	File       string
	Controller *Controller
	Agent      *Agent
	HAProxy    *HAProxy
	VIP        *VIP

	// Origin maps the dotted path of a value to its source: the file, a variable, --set. An absent
	// path has its default.
	Origin map[string]string

	places *decoder
}

// Problems words another package's errors about its part of the configuration like Load's: a line
// of err that begins with a key, as in "haproxy.bind: …", gets the position of that key.
func (l *Loaded) Problems(err error) Problems {
	d := &decoder{file: l.File, where: l.places.where, origin: l.Origin}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		key, what, ok := strings.Cut(line, ": ")
		if ok && known(reflect.TypeOf(l.Root()), key) {
			d.wrong(key, "%s", what)
		} else {
			d.problem(nil, "", "%s", line)
		}
	}
	return d.sorted()
}

// known reports whether a struct has a dotted path.
func known(t reflect.Type, path string) bool {
	for key := range strings.SplitSeq(path, ".") {
		key, _, _ = strings.Cut(key, "[")
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() == reflect.Map {
			return true
		}
		if t.Kind() != reflect.Struct {
			return false
		}
		field, ok := fieldOf(reflect.New(t).Elem(), key)
		if !ok {
			return false
		}
		t = field.Type()
	}
	return true
}

// Root returns the struct of the kind.
func (l *Loaded) Root() any {
	switch l.Kind {
	case KindController:
		return l.Controller
	case KindAgent:
		return l.Agent
	case KindVIP:
		return l.VIP
	default:
		return l.HAProxy
	}
}

// Options configures [Load].
type Options struct {
	File string
	Want Kind // if not empty, the only kind that is accepted
	// Away is set by callers that only need the store's address from a file. Then Load does not
	// look for the files, programs and users of the file on this host, except those that the store
	// itself needs.
	Away bool
	Set  []string            // "lease.ttl=3s"
	Env  func(string) string // nil: os.Getenv
	// Environ lists the set variables, like [os.Environ], to find those that nothing reads. If nil,
	// it is that of this process, unless Env is set.
	Environ []string
}

// Load reads a file and everything that overrides it. The error is [Problems], or the file is
// unreadable.
func Load(o Options) (*Loaded, error) {
	src, err := os.ReadFile(o.File)
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %v", err)
	}
	return Parse(src, o)
}

// Parse is Load for content that has been read already.
func Parse(src []byte, o Options) (*Loaded, error) {
	if o.Env == nil {
		o.Env = os.Getenv
		if o.Environ == nil {
			o.Environ = os.Environ()
		}
	}
	d := &decoder{file: o.File, away: o.Away, where: map[string]*token.Position{}, origin: map[string]string{}}
	body := d.document(src)
	if body == nil {
		return nil, d.sorted()
	}
	l := &Loaded{File: o.File, Origin: d.origin, places: d}
	values, ok := pairs(body)
	if !ok {
		d.problem(position(body), "", "%s is not a mapping: begin with `kind: controller`", kindOf(body))
		return nil, d.sorted()
	}
	kindAt := position(body)
	for _, pair := range values {
		if keyName(pair) == "kind" {
			text, _ := scalar(d.resolve(pair.Value))
			l.Kind, kindAt = Kind(text), position(pair.Value)
		}
	}
	var root reflect.Value
	switch l.Kind {
	case KindController:
		l.Controller = NewController()
		root = reflect.ValueOf(l.Controller).Elem()
	case KindAgent:
		l.Agent = NewAgent()
		root = reflect.ValueOf(l.Agent).Elem()
	case KindHAProxy:
		l.HAProxy = NewHAProxy()
		root = reflect.ValueOf(l.HAProxy).Elem()
	case KindVIP:
		l.VIP = NewVIP()
		root = reflect.ValueOf(l.VIP).Elem()
	case "":
		d.problem(kindAt, "kind", "it is missing: one of controller, agent, haproxy, vip")
		return nil, d.sorted()
	default:
		d.problem(kindAt, "kind", "%q is not one of controller, agent, haproxy, vip", l.Kind)
		return nil, d.sorted()
	}
	if o.Want != "" && l.Kind != o.Want {
		d.problem(kindAt, "kind", "this file is of kind %s, and %s is needed here", l.Kind, o.Want)
		return nil, d.sorted()
	}

	d.root = root.Type()
	d.native(root, o.Env)
	d.mapping(body, root, "")
	d.variables(root, "", o.Env)
	d.strayVariables(o.Environ)
	d.flags(root, o.Set)
	d.oneOf(root, "")
	switch l.Kind {
	case KindController:
		d.own(&l.Controller.Etcd, &l.Controller.Consul)
		d.checkController(l.Controller)
	case KindAgent:
		d.own(&l.Agent.Etcd, &l.Agent.Consul)
		d.checkAgent(l.Agent)
	case KindHAProxy:
		d.own(&l.HAProxy.Etcd, &l.HAProxy.Consul)
		d.checkHAProxy(l.HAProxy)
	case KindVIP:
		d.own(&l.VIP.Etcd, &l.VIP.Consul)
		d.checkVIP(l.VIP)
	}
	if len(d.problems) > 0 {
		return nil, d.sorted()
	}
	return l, nil
}

// ForStore returns the configuration of an operator's command without a file: kind agent with its
// defaults, the variables of the stores' own tools, and the TANIST_* variables about the store.
// Only its store part is meaningful.
func ForStore(cluster string, env func(string) string) (*Loaded, error) {
	if env == nil {
		env = os.Getenv
	}
	d := &decoder{away: true, where: map[string]*token.Position{}, origin: map[string]string{"cluster": "--cluster"}}
	l := &Loaded{Kind: KindAgent, Agent: NewAgent(), Origin: d.origin, places: d}
	l.Agent.Cluster = cluster
	root := reflect.ValueOf(l.Agent).Elem()
	d.native(root, env)
	for f, value := range root.Fields() {
		switch key := f.Tag.Get("yaml"); key {
		case "etcd", "consul", "postgres":
			d.variables(value, key, env)
		case "store", "plugin_dirs":
			variable := "TANIST_" + strings.ToUpper(key)
			if text := env(variable); text != "" {
				d.override(root, key, text, "$"+variable)
			}
		}
	}
	d.oneOf(root, "")
	d.name("cluster", cluster)
	d.own(&l.Agent.Etcd, &l.Agent.Consul)
	d.store(l.Agent.Store, l.Agent.Etcd, l.Agent.Consul, l.Agent.Postgres)
	d.plugins(l.Agent.Store, l.Agent.Plugins, l.Agent.PluginDirs)
	if len(d.problems) > 0 {
		return nil, d.sorted()
	}
	return l, nil
}

// native uses the variables of the stores' own tools as defaults.
func (d *decoder) native(root reflect.Value, env func(string) string) {
	for _, n := range []struct{ variable, path string }{
		{"ETCDCTL_ENDPOINTS", "etcd.endpoints"},
		{"ETCDCTL_CACERT", "etcd.tls.ca_file"},
		{"ETCDCTL_CERT", "etcd.tls.cert_file"},
		{"ETCDCTL_KEY", "etcd.tls.key_file"},
		{"CONSUL_HTTP_TOKEN_FILE", "consul.token_file"},
		{"CONSUL_CACERT", "consul.tls.ca_file"},
		{"CONSUL_CLIENT_CERT", "consul.tls.cert_file"},
		{"CONSUL_CLIENT_KEY", "consul.tls.key_file"},
		{"CONSUL_TLS_SERVER_NAME", "consul.tls.server_name"},
	} {
		if text := env(n.variable); text != "" {
			d.override(root, n.path, text, "$"+n.variable)
		}
	}
	// These combine several values, or are secrets.
	if name, password, has := strings.Cut(env("ETCDCTL_USER"), ":"); name != "" {
		d.override(root, "etcd.username", name, "$ETCDCTL_USER")
		if has {
			d.secret(root, "Etcd", "Password", password)
		}
	}
	if password := env("ETCDCTL_PASSWORD"); password != "" {
		d.secret(root, "Etcd", "Password", password)
	}
	if token := env("CONSUL_HTTP_TOKEN"); token != "" {
		d.secret(root, "Consul", "Token", token)
	}
	if address := env("CONSUL_HTTP_ADDR"); address != "" {
		if !strings.Contains(address, "://") {
			scheme := "http://"
			if tls, err := strconv.ParseBool(env("CONSUL_HTTP_SSL")); err == nil && tls {
				scheme = "https://"
			}
			address = scheme + address
		}
		d.override(root, "consul.address", address, "$CONSUL_HTTP_ADDR")
	}
}

// secret keeps a secret from the environment, in a field that no file can set.
func (d *decoder) secret(root reflect.Value, store, field, value string) {
	root.FieldByName(store).FieldByName(field).SetString(value)
}

// own drops the environment's secrets if the file has its own: a password belongs to its user.
func (d *decoder) own(etcd *Etcd, consul *Consul) {
	if etcd.PasswordFile != "" || (d.origin["etcd.username"] == d.file && d.file != "") {
		etcd.Password = ""
	}
	if consul.TokenFile != "" {
		consul.Token = ""
	}
}

// variables applies TANIST_* variables: every scalar and every list of texts of the struct has one.
func (d *decoder) variables(v reflect.Value, path string, env func(string) string) {
	for f, value := range v.Fields() {
		key := f.Tag.Get("yaml")
		if key == "" || (path == "" && key == "kind") {
			continue
		}
		p := join(path, key)
		switch {
		case value.Kind() == reflect.Struct:
			d.variables(value, p, env)
		case value.Kind() == reflect.Pointer:
			if !value.IsNil() {
				d.variables(value.Elem(), p, env)
			}
		case path == "" && key == "name", path == "" && key == "cluster":
			// A hook or a controller that starts another sidecar has its own TANIST_NAME and
			// TANIST_CLUSTER. They describe it and configure nothing.
		default:
			variable := "TANIST_" + strings.ToUpper(strings.ReplaceAll(p, ".", "_"))
			if text := env(variable); text != "" {
				d.overrideAt(v, key, p, text, "$"+variable)
			}
		}
	}
}

// strayVariables reports variables with our prefix that no kind of configuration has: most likely a
// name is misspelled, and the intended value has no effect.
func (d *decoder) strayVariables(environ []string) {
	known, sections := map[string]bool{}, map[string]bool{}
	for _, root := range []any{NewController(), NewAgent(), NewHAProxy(), NewVIP()} {
		variablesOf(reflect.TypeOf(root).Elem(), "", known, sections)
	}
	names := slices.Sorted(maps.Keys(known))
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		rest, ours := strings.CutPrefix(name, "TANIST_")
		if !ours || known[name] {
			continue
		}
		section, _, _ := strings.Cut(rest, "_")
		near := suggest(name, names)
		misspelt := sections[section] && section != rest && !strings.HasPrefix(near, ";")
		if !misspelt && !slices.ContainsFunc(names, func(k string) bool { return len(rest) >= 7 && distance(name, k) <= 2 }) {
			continue // the program's own, perhaps: there it must be nearly a key's name
		}
		d.problems = append(d.problems, Problem{Where: "$" + name, Key: "", What: "no key has this variable" + near})
	}
}

// variablesOf collects the variables of a struct's keys and the names of its sections.
func variablesOf(t reflect.Type, path string, known, sections map[string]bool) {
	for f := range t.Fields() {
		key := f.Tag.Get("yaml")
		if key == "" {
			continue
		}
		of := f.Type
		if of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		p := join(path, key)
		variable := strings.ToUpper(strings.ReplaceAll(p, ".", "_"))
		known["TANIST_"+variable] = true
		if of.Kind() == reflect.Struct && of != durationType {
			if path == "" {
				sections[variable] = true
			}
			variablesOf(of, p, known, sections)
		}
	}
}

// flags applies --set path=value.
func (d *decoder) flags(root reflect.Value, sets []string) {
	for _, set := range sets {
		path, text, ok := strings.Cut(set, "=")
		if !ok {
			d.problems = append(d.problems, Problem{Where: "--set", Key: set, What: "write it as path=value, such as lease.ttl=3s"})
			continue
		}
		d.override(root, path, text, "--set")
	}
}

// override sets the value at a dotted path.
func (d *decoder) override(v reflect.Value, path, text, origin string) {
	d.overrideAt(v, path, path, text, origin)
}

// overrideAt sets the value at a dotted path below v, whose path from the root is full.
func (d *decoder) overrideAt(v reflect.Value, path, full, text, origin string) {
	for {
		key, rest, more := strings.Cut(path, ".")
		field, ok := fieldOf(v, key)
		if !ok {
			if strings.HasPrefix(origin, "--") {
				d.problems = append(d.problems, Problem{Where: origin, Key: full, What: "unknown key" + suggest(key, keysOf(v.Type()))})
			}
			return
		}
		if field.Kind() == reflect.Pointer {
			if field.IsNil() {
				field.Set(reflect.New(field.Type().Elem()))
				field.Elem().Set(fresh(field.Type().Elem()))
			}
			field = field.Elem()
		}
		if !more {
			if err := setScalar(field, text); err != nil {
				d.problems = append(d.problems, Problem{Where: origin, Key: full, What: err.Error()})
			}
			d.origin[full] = origin
			return
		}
		if field.Kind() != reflect.Struct {
			d.problems = append(d.problems, Problem{Where: origin, Key: full, What: "it can't be set this way; use the file"})
			return
		}
		v, path = field, rest
	}
}
