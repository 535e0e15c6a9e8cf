package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml/token"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func noEnv(string) string { return "" }

func envOf(pairs map[string]string) func(string) string {
	return func(name string) string { return pairs[name] }
}

// root returns the defaults of a kind.
func root(kind Kind) any {
	switch kind {
	case KindController:
		return NewController()
	case KindAgent:
		return NewAgent()
	case KindVIP:
		return NewVIP()
	default:
		return NewHAProxy()
	}
}

// TestReferenceIsTheDefaults: every value that a reference file shows without "#:" is the default.
func TestReferenceIsTheDefaults(t *testing.T) {
	for _, kind := range Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			text, err := Reference(kind)
			if err != nil {
				t.Fatal(err)
			}
			d := &decoder{file: string(kind), where: map[string]*token.Position{}, origin: map[string]string{}}
			got, want := root(kind), root(kind)
			reflect.ValueOf(want).Elem().FieldByName("Cluster").SetString("orders")
			// What is read does not fall back on the defaults: it starts with the name only, which
			// has no default.
			zero := reflect.ValueOf(got).Elem()
			name := zero.FieldByName("Name").String()
			zero.SetZero()
			zero.FieldByName("Name").SetString(name)
			d.mapping(d.document([]byte(text)), zero, "")
			if len(d.problems) > 0 {
				t.Fatal(d.sorted())
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("the reference is not the defaults (- defaults, + reference):\n%s", diff)
			}
		})
	}
}

// TestReferenceHasEveryKey: with its "#:" lines, a reference is a file without a problem, and names
// every key there is.
func TestReferenceHasEveryKey(t *testing.T) {
	for _, kind := range Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			text, err := Reference(kind)
			if err != nil {
				t.Fatal(err)
			}
			whole := strings.ReplaceAll(text, "#: ", "")
			whole = strings.Replace(whole, "  checks: []\n", "", 1)
			whole = regexp.MustCompile(`(?m)^ *(virtual_ip|fit|notify|access): \[\].*\n`).ReplaceAllString(whole, "")
			whole = regexp.MustCompile(`tls: \{\}( +# cert_file, key_file of https)`).ReplaceAllString(whole, "tls: {cert_file: /c, key_file: /k, ca_file: /a}$1")
			whole = strings.Replace(whole, "/run/secrets/etcd", "/dev/null", 1) // it is there
			_, err = Parse([]byte(whole), Options{File: string(kind), Away: true, Env: noEnv})
			var problems Problems
			errors.As(err, &problems)
			for _, p := range problems {
				if !strings.Contains(p.What, "it has no effect with driver exec") { // one file can't have the keys of every driver
					t.Errorf("%v\n%s", p, whole)
				}
			}
			for _, path := range paths(reflect.TypeOf(root(kind)), "") {
				key := path[strings.LastIndex(path, ".")+1:]
				if !regexp.MustCompile(`(?m)(^|[^a-z_])` + key + `\b`).MatchString(text) {
					t.Errorf("%s is not in the reference", path)
				}
			}
		})
	}
}

func paths(t reflect.Type, path string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return []string{path}
	}
	var all []string
	for f := range t.Fields() {
		if key := f.Tag.Get("yaml"); key != "" {
			all = append(all, paths(f.Type, join(path, key))...)
		}
	}
	return all
}

// good is the minimal configuration of a controller.
const good = `kind: controller
cluster: orders
name: ctl-a
run:
  command: [/bin/sh]
  url: http://10.0.0.11:8080
`

// TestProblems: each is reported with its position, its key, the problem, and what to do.
func TestProblems(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"nothing", "", []string{"f.yml:1:1: the file is empty: `tanist config init` writes one to begin with"}},
		{"a text", "hello", []string{`f.yml:1:1: "hello" is not a mapping: begin with ` + "`kind: controller`"}},
		{"a tab", "kind: controller\n\tcluster: orders\n", []string{"f.yml:2:1: this is not YAML: a tab can't indent a line: use blanks"}},
		{"no kind", "cluster: orders\n", []string{"f.yml:1:1: kind: it is missing: one of controller, agent, haproxy"}},
		{"an unknown kind", "cluster: orders\nkind: sidecar\n", []string{`f.yml:2:7: kind: "sidecar" is not one of controller, agent, haproxy`}},
		{"two documents", good + "---\nkind: agent\n", []string{"f.yml:8:1: a second document begins here: one file configures one process"}},
		{"an unknown key", good + "yield_wiat: 3s\n", []string{"f.yml:7:1: yield_wiat: unknown key (did you mean yield_wait?)"}},
		{"an unknown key below", good + "lease: {profil: fast}\n", []string{"f.yml:7:9: lease.profil: unknown key (did you mean profile?)"}},
		{"a key in the wrong place", good + "stop_timeout: 3s\n", []string{"f.yml:7:1: stop_timeout: unknown key here (did you mean run.stop_timeout?)"}},
		{"a key in one of two places", good + "timeout: 3s\n", []string{"f.yml:7:1: timeout: unknown key here (did you mean failsafe.timeout or run.migrate.timeout or health.timeout?)"}},
		{"a key like none", good + "hooks: {zzzzzzzzzz: 1}\n", []string{"f.yml:7:9: hooks.zzzzzzzzzz: unknown key; known here: on_active, on_passive, on_stop_failure, pre_start"}},
		{"an empty key", good + "\"\": 1\n", []string{"f.yml:7:1: unknown key"}},
		{"a key of no file", good + "etcd: {Password: x}\n", []string{"f.yml:7:8: etcd.Password: unknown key"}},
		{"a key twice", good + "priority: 1\npriority: 2\n", []string{"f.yml:8:1: priority: the key stands here twice"}},
		{"no value", good + "priority:\n", []string{"f.yml:7:11: priority: there is no value: give one, or remove the key to get the default"}},
		{"a word for a number", good + "priority: high\n", []string{`f.yml:7:11: priority: "high" is not a whole number`}},
		{"a word for a duration", good + "yield_wait: soon\n", []string{`f.yml:7:13: yield_wait: "soon" is not a duration: write one like 3s or 500ms`}},
		{"a bare number for a duration", good + "yield_wait: 30\n", []string{`f.yml:7:13: yield_wait: "30" is not a duration: write one like 3s or 500ms`}},
		{"a negative duration", good + "yield_wait: -3s\n", []string{`f.yml:7:13: yield_wait: "-3s" is negative`}},
		{"a word for true", good + "nofailover: yes please\n", []string{`f.yml:7:13: nofailover: "yes please" is not true or false`}},
		{"a list for a text", good + "store: [etcd]\n", []string{`f.yml:7:8: store: a list is not a text`}},
		{"a mapping for a list", good + "hooks: {on_active: {a: b}}\n", []string{"hooks.on_active: a mapping is not a list"}},
		{"a text for a list", "kind: agent\ncluster: orders\nname: a\nrun: {command: /bin/sleep 60}\n", []string{
			`f.yml:4:16: run.command: "/bin/sleep 60" is not a list: write [/bin/sleep, 60]`,
		}},
		{"a text for a mapping", good + "health: fast\n", []string{`f.yml:7:9: health: "fast" is not a mapping; it has the keys interval, timeout, rise, fall, checks`}},
		{"an unknown store", good + "store: zookeeper\n", []string{`f.yml:7:8: store: "zookeeper" is not one of etcd, consul, postgres`}},
		{"a store that is mistyped", good + "store: etdc\n", []string{`f.yml:7:8: store: "etdc" is not one of etcd, consul, postgres, plugin:NAME (did you mean etcd?)`}},
		{"an unknown profile", good + "lease: {profile: fats}\n", []string{`f.yml:7:18: lease.profile: "fats" is not one of default, fast (did you mean fast?)`}},
		{"a ttl that the store can't do", good + "lease: {ttl: 1s, validity: 500ms, renew_every: 100ms, stop_budget: 150ms, leader_change: true}\n", []string{
			"f.yml:7:14: lease.ttl: lease.ttl 1s is below the 2s that etcd can do: raise ttl",
		}},
		{"a validity beyond the ttl", good + "lease: {ttl: 2s, validity: 10s}\n", []string{"f.yml:7:28: lease.validity: lease.validity 10s, with 2 % clock drift"}},
		{"no command", strings.Replace(good, "[/bin/sh]", "[]", 1), []string{"f.yml:5:3: run.command: it is empty: give the program and its arguments"}},
		{"no run", "kind: controller\ncluster: orders\nname: ctl-a\n", []string{"f.yml:1:1: run.command: it is empty", "f.yml:1:1: run.url: it is missing"}},
		{"a command that is not there", strings.Replace(good, "/bin/sh", "/no/such/program", 1), []string{
			"f.yml:5:3: run.command: stat /no/such/program: no such file or directory",
		}},
		{"a command that is nowhere", strings.Replace(good, "/bin/sh", "no-such-program", 1), []string{`run.command: exec: "no-such-program": executable file not found in $PATH`}},
		{"a command in a PATH of its own", strings.Replace(good, "/bin/sh]", "sh]\n  env: {PATH: /nowhere}", 1), []string{
			`f.yml:5:3: run.command: there is no program "sh" in the PATH /nowhere`,
		}},
		{"a name that can't be a key", strings.Replace(good, "ctl-a", "ctl/a", 1), []string{`f.yml:3:7: name: "ctl/a" is not a name: use 1 to 63 letters`}},
		{"a URL with a password", strings.Replace(good, "http://", "http://ana:secret@", 1), []string{"f.yml:6:8: run.url: it has a user or password in it, and everybody can read it: remove them"}},
		{"an address without a port", good + "listen: {http: localhost}\n", []string{`f.yml:7:16: listen.http: "localhost" is not an address: write host:port`}},
		{"a port that is none", good + "listen: {http: \"localhost:99999\"}\n", []string{`f.yml:7:16: listen.http: "localhost:99999" has no port between 0 and 65535`}},
		{"other hosts and no secret", good + "listen: {http: \":8710\"}\n", []string{
			"f.yml:7:16: listen.http: other hosts reach :8710, and it asks nobody for a secret: listen on 127.0.0.1, or set listen.secret_file",
		}},
		{"other hosts and a secret that is too short", good + "listen: {http: \"10.0.0.11:8710\", secret_file: /dev/null}\n", []string{
			"f.yml:7:47: listen.secret_file: the secret has fewer than 16 characters",
		}},
		{"open to what there is not", good + "listen: {http: \"10.0.0.11:8710\", open: some}\n", []string{`listen.open: "some" is not one of answers, all`}},
		{"an admin socket that is none", good + "listen: {admin: \"127.0.0.1:1\"}\n", []string{`f.yml:7:17: listen.admin: "127.0.0.1:1" is not a Unix socket`}},
		{"an unknown user", strings.Replace(good, "command:", "user: nobody-of-that-name\n  command:", 1), []string{`f.yml:5:9: run.user: there is no user "nobody-of-that-name" on this host`}},
		{"an unknown signal", strings.Replace(good, "command:", "stop_signal: STOP\n  command:", 1), []string{`f.yml:5:16: run.stop_signal: "STOP" is not a signal`}},
		{"a key of another driver", strings.Replace(good, "command:", "unit: x.service\n  command:", 1), []string{"f.yml:5:9: run.unit: it has no effect with driver exec, only with systemd"}},
		{"a unit with a command", strings.Replace(good, "command:", "driver: systemd\n  unit: x.service\n  command:", 1), []string{"f.yml:7:3: run.command: it has no effect with driver systemd, only with exec and script"}},
		{"an invalid unit", strings.Replace(good, "command: [/bin/sh]", "driver: systemd\n  unit: x", 1), []string{`f.yml:6:9: run.unit: "x" is not the name of a service`}},
		{"keep without a repository", good + "on_store_loss: keep\n", []string{"f.yml:7:16: on_store_loss: keep lets two controllers run when the store can't be reached"}},
		{"a variable given twice", strings.Replace(good, "command:", "env: {A: x, B: y, A: z}\n  command:", 1), []string{"f.yml:5:21: run.env.A: the key stands here twice"}},
		{"failsafe on this host alone", good + "on_store_loss: failsafe\nlisten: {http: \"127.0.0.1:8710\"}\n", []string{
			"failsafe.secret_file: it is missing",
			"f.yml:8:16: listen.http: 127.0.0.1 is this host itself, and on_store_loss failsafe needs an address that the other sidecars reach",
		}},
		{"failsafe advertised on this host alone", good + "on_store_loss: failsafe\nlisten: {http: \":8710\", advertise: \"http://localhost:8710\"}\n", []string{
			"failsafe.secret_file: it is missing",
			"listen.advertise: localhost is this host itself",
		}},
		{"failsafe nowhere", good + "on_store_loss: failsafe\nlisten: {http: \":8710\"}\n", []string{"failsafe.secret_file: it is missing", "listen.advertise: it is missing: listen.http :8710 names no host"}},
		{"failsafe without a secret", good + "on_store_loss: failsafe\n", []string{"failsafe.secret_file: it is missing", "listen.http: 127.0.0.1 is this host itself"}},
		{"two kinds of check", good + "health: {checks: [{name: a, http: \"http://h/\", tcp: \"h:1\"}]}\n", []string{
			"f.yml:7:20: health.checks[0]: give exactly one of http, tcp, exec, grpc, postgres, plugin",
		}},
		{"a secret file that is not there", good + "etcd: {username: a, password_file: /no/such/file}\n", []string{
			"f.yml:7:36: etcd.password_file: open /no/such/file: no such file or directory",
		}},
		{"half a certificate", good + "etcd: {tls: {cert_file: /etc/hostname}}\n", []string{"f.yml:7:8: etcd.tls: cert_file and key_file belong together"}},
		{"an endpoint with a password", good + "etcd: {endpoints: [\"http://a:b@h:2379\"]}\n", []string{"etcd.endpoints[0]: it holds a user name"}},
		{"another Consul of another scheme", good + "store: consul\nconsul: {others: [\"https://10.0.0.2:8501\", \"10.0.0.3\"]}\n", []string{
			`f.yml:8:19: consul.others[0]: "https://10.0.0.2:8501" begins with https:// and consul.address with http://: give all the same`,
			`f.yml:8:44: consul.others[1]: "10.0.0.3" begins with neither http:// nor https://`,
		}},
		{"a password in the connection string", good + "store: postgres\npostgres: {dsn: \"postgres://tanist:s3cret@db/orders\"}\n", []string{"f.yml:8:17: postgres.dsn: it holds a password: use password_file"}},
		{"a password among keywords", good + "store: postgres\npostgres: {dsn: \"host=db password=s3cret\"}\n", []string{"f.yml:8:17: postgres.dsn: it holds a password: use password_file"}},
		{"two connection strings", good + "store: postgres\npostgres: {dsn: \"host=db\", dsn_file: /dev/null}\n", []string{"f.yml:8:17: postgres.dsn: give either dsn or dsn_file"}},
		{"a connection string that is none", good + "store: postgres\npostgres: {dsn: \"postgres://a@b@c/d\"}\n", []string{"f.yml:8:17: postgres.dsn: cannot read the connection string: it has more than one @"}},
		{"an invalid proxy port", good + "store: consul\nconsul: {service: {name: orders, connect: true, proxy_port: 70000}}\n", []string{"f.yml:8:61: consul.service.proxy_port: 70000 is not a port"}},
		{"an etcd endpoint without a colon", good + "etcd: {endpoints: [\"http//10.0.0.1:2379\"]}\n", []string{`f.yml:7:20: etcd.endpoints[0]: "http//10.0.0.1:2379" lacks the colon after its scheme`}},
		{"an etcd endpoint without a port", good + "etcd: {endpoints: [\"http://10.0.0.1\"]}\n", []string{`f.yml:7:20: etcd.endpoints[0]: "http://10.0.0.1" has no host or no port`}},
		{"a Consul address without a scheme", good + "store: consul\nconsul: {address: \"localhost:8500\"}\n", []string{`f.yml:8:19: consul.address: "localhost:8500" begins with neither http:// nor https://; write http://host:port`}},
		{"an agent without a command", "kind: agent\ncluster: orders\nname: a\n", []string{"f.yml:1:1: run: it is missing: run.command starts the agent"}},
		{"an invalid mode", "kind: agent\ncluster: orders\nname: a\nrun: {command: [/bin/sh], files: [{template: /etc/hostname, path: /tmp/x, mode: \"0640x\"}]}\n", []string{
			`run.files[0].mode: "0640x" is not a mode: write it in quotes, such as "0640"`,
		}},
		{"an unknown mode of HAProxy", "kind: haproxy\ncluster: orders\nhaproxy: {mode: udp}\n", []string{`f.yml:3:17: haproxy.mode: "udp" is not one of http, tcp`}},
		{"an alias of itself", good + "etcd: &a {endpoints: *a}\n", []string{"etcd"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := Parse([]byte(tc.text), Options{File: "f.yml", Env: noEnv})
			var problems Problems
			if l != nil || !errors.As(err, &problems) {
				t.Fatalf("got %v, %v", l, err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if len(problems) != len(tc.want) {
				t.Errorf("%d problems, want %d", len(problems), len(tc.want))
			}
			if t.Failed() {
				t.Log(err)
			}
		})
	}
}

// TestEverythingAtOnce: all problems of a file are reported in the order of the file, and so are
// those of variables and flags.
func TestEverythingAtOnce(t *testing.T) {
	text := "kind: controller\ncluster: or ders\nleese: {}\nrun: {command: [], url: nowhere}\nyield_wait: soon\nhealth: {rise: 0}\n"
	_, err := Parse([]byte(text), Options{
		File: "f.yml", Set: []string{"priority=high", "nonsense", "lease.tll=3s"},
		Env: envOf(map[string]string{"TANIST_HEALTH_FALL": "many", "TANIST_WATCHDOG": "maybe"}),
	})
	if _, ok := errors.AsType[Problems](err); !ok {
		t.Fatal(err)
	}
	want := []string{
		`$TANIST_HEALTH_FALL: health.fall: "many" is not a whole number`,
		`--set: priority: "high" is not a whole number`,
		`--set: nonsense: write it as path=value, such as lease.ttl=3s`,
		`--set: lease.tll: unknown key (did you mean ttl?)`,
		`$TANIST_WATCHDOG: watchdog: "maybe" is not one of off, auto, required`,
		`f.yml:2:10: cluster: "or ders" is not a name: use 1 to 63 letters, digits, dots, dashes and underscores, beginning and ending with a letter or digit`,
		`f.yml:3:1: leese: unknown key (did you mean lease?)`,
		`f.yml:4:7: run.command: it is empty: give the program and its arguments, such as [/opt/orders/bin/ordersd, --port, "8080"]`,
		`f.yml:4:25: run.url: "nowhere" begins with neither http:// nor https://`,
		`f.yml:5:13: yield_wait: "soon" is not a duration: write one like 3s or 500ms`,
		"10 problems",
	}
	if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
		t.Error(diff)
	}
}

// TestWhoWins: defaults < the stores' own variables < file < TANIST_* < --set, and each value knows
// its source.
func TestWhoWins(t *testing.T) {
	native := map[string]string{"ETCDCTL_ENDPOINTS": "http://native:2379, http://native:2380"}
	tanist := map[string]string{"ETCDCTL_ENDPOINTS": "http://native:2379", "TANIST_ETCD_ENDPOINTS": "http://tanist:2379", "TANIST_LEASE_TTL": "7s"}
	file := good + "etcd: {endpoints: [\"http://file:2379\"]}\nlease: {ttl: 6s}\n"
	for _, tc := range []struct {
		name, text string
		env        map[string]string
		set        []string
		endpoint   string
		origin     string
		ttl        time.Duration
	}{
		{"a default", good, nil, nil, "http://127.0.0.1:2379", "", 0},
		{"a native variable", good, native, nil, "http://native:2379", "$ETCDCTL_ENDPOINTS", 0},
		{"the file", file, native, nil, "http://file:2379", "f.yml", 6 * time.Second},
		{"a TANIST_ variable", file, tanist, nil, "http://tanist:2379", "$TANIST_ETCD_ENDPOINTS", 7 * time.Second},
		{"a flag", file, tanist, []string{"etcd.endpoints=http://flag:2379", "lease.ttl=8s"}, "http://flag:2379", "--set", 8 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := Parse([]byte(tc.text), Options{File: "f.yml", Env: envOf(tc.env), Set: tc.set})
			if err != nil {
				t.Fatal(err)
			}
			if got := l.Controller.Etcd.Endpoints[0]; got != tc.endpoint {
				t.Errorf("endpoint %s, want %s", got, tc.endpoint)
			}
			if got := l.Origin["etcd.endpoints"]; got != tc.origin {
				t.Errorf("origin %q, want %q", got, tc.origin)
			}
			if got := l.Controller.Lease.TTL; got != tc.ttl {
				t.Errorf("ttl %v, want %v", got, tc.ttl)
			}
		})
	}
}

// TestNamesAreNotInherited: a program that a sidecar runs has TANIST_NAME and TANIST_CLUSTER; they
// configure nothing.
func TestNamesAreNotInherited(t *testing.T) {
	l, err := Parse([]byte(good), Options{File: "f.yml", Env: envOf(map[string]string{"TANIST_NAME": "other", "TANIST_CLUSTER": "other"})})
	if err != nil {
		t.Fatal(err)
	}
	if l.Controller.Name != "ctl-a" || l.Controller.Cluster != "orders" {
		t.Errorf("got %s in %s", l.Controller.Name, l.Controller.Cluster)
	}
}

// TestSecrets: those of the environment are used if the file has none of its own, and are never
// shown.
func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "password")
	if err := os.WriteFile(file, []byte("of-the-file"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"ETCDCTL_USER": "ana:hunter2", "CONSUL_HTTP_TOKEN": "hunter2"}
	for _, tc := range []struct {
		name, text, user, password string
		env                        map[string]string
	}{
		{"both in one variable", good, "ana", "hunter2", env},
		{"the password in its own", good, "ana", "hunter2", map[string]string{"ETCDCTL_USER": "ana", "ETCDCTL_PASSWORD": "hunter2"}},
		{"the file names a file", good + "etcd: {username: bob, password_file: " + file + "}\n", "bob", "", env},
		{"a password is not given to another user", good + "etcd: {username: bob}\n", "bob", "", env},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := Parse([]byte(tc.text), Options{File: "f.yml", Env: envOf(tc.env)})
			if err != nil {
				t.Fatal(err)
			}
			if got := l.Controller.Etcd; got.Username != tc.user || string(got.Password) != tc.password {
				t.Errorf("got %s, %q", got.Username, string(got.Password))
			}
			b, err := json.Marshal(l.Controller)
			if err != nil {
				t.Fatal(err)
			}
			if shown := fmt.Sprintf("%v %+v %#v %s %v", *l.Controller, *l.Controller, *l.Controller, b, l.Values()); strings.Contains(shown, "hunter2") {
				t.Errorf("the secret is shown: %s", shown)
			}
		})
	}
	l, err := Parse([]byte(strings.Replace(good, "command:", "env: {PGPASSWORD: hunter2, MODE: active}\n  command:", 1)), Options{File: "f.yml", Env: noEnv})
	if err != nil {
		t.Fatal(err)
	}
	if shown := fmt.Sprint(l.Values()); strings.Contains(shown, "hunter2") || !strings.Contains(shown, `"active"`) {
		t.Errorf("shown: %s", shown)
	}
}

// TestConsulVariables are read as Consul's own command reads them.
func TestConsulVariables(t *testing.T) {
	for _, tc := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"CONSUL_HTTP_ADDR": "10.0.0.1:8500"}, "http://10.0.0.1:8500"},
		{map[string]string{"CONSUL_HTTP_ADDR": "10.0.0.1:8501", "CONSUL_HTTP_SSL": "true"}, "https://10.0.0.1:8501"},
		{map[string]string{"CONSUL_HTTP_ADDR": "unix:///run/consul.sock"}, "unix:///run/consul.sock"},
	} {
		l, err := ForStore("orders", envOf(tc.env))
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Agent.Consul.Address; got != tc.want {
			t.Errorf("%v: got %s, want %s", tc.env, got, tc.want)
		}
	}
	l, err := ForStore("orders", envOf(map[string]string{"TANIST_STORE": "consul", "TANIST_CONSUL_ADDRESS": "http://c:8500", "TANIST_RETRIES_COUNT": "many"}))
	if err != nil {
		t.Fatal(err)
	}
	if l.Agent.Store != "consul" || l.Agent.Consul.Address != "http://c:8500" {
		t.Errorf("got %+v", l.Agent)
	}
	if _, err := ForStore("or/ders", noEnv); err == nil {
		t.Error("a name that can't be a key was accepted")
	}
}

// TestAway: a command that only queries the cluster does not need the files of the process itself.
func TestAway(t *testing.T) {
	text := strings.Replace(good, "/bin/sh", "/no/such/program", 1) + "repository: {dsn_file: /no/such/file, role: r, secret: {env: PGPASSWORD}}\n"
	if _, err := Parse([]byte(text), Options{File: "f.yml", Env: noEnv}); err == nil {
		t.Error("the process itself was not refused")
	}
	if _, err := Parse([]byte(text), Options{File: "f.yml", Env: noEnv, Away: true}); err != nil {
		t.Error(err)
	}
	if _, err := Parse([]byte(text+"etcd: {username: a, password_file: /no/such/file}\n"), Options{File: "f.yml", Env: noEnv, Away: true}); err == nil {
		t.Error("a missing file of the store was not reported")
	}
}

// TestRooms: a package's error about a key is shown at the position of the key.
func TestRooms(t *testing.T) {
	l, err := Parse([]byte(good), Options{File: "f.yml", Env: noEnv, Set: []string{"health.rise=2"}})
	if err != nil {
		t.Fatal(err)
	}
	got := l.Problems(errors.New("run.url: it has no port\nhealth.rise: too many\nsomething: else\nrun.no.such: thing")).Error()
	want := "--set: health.rise: too many\nf.yml: something: else\nf.yml: run.no.such: thing\nf.yml:6:8: run.url: it has no port\n4 problems"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestSchema: it has every key, allows the values that the check allows, and has the descriptions
// of the reference.
func TestSchema(t *testing.T) {
	for _, kind := range Kinds() {
		s, err := Schema(kind)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths(reflect.TypeOf(root(kind)), "") {
			if !inSchema(s, path) {
				t.Errorf("%s: %s is not in the schema", kind, path)
			}
		}
	}
	s, err := Schema(KindController)
	if err != nil {
		t.Fatal(err)
	}
	at := property(s, "on_store_loss")
	if diff := cmp.Diff([]string{"stop", "failsafe", "keep"}, at["enum"]); diff != "" {
		t.Error(diff)
	}
	if at["default"] != "stop" {
		t.Errorf("default %v", at["default"])
	}
	if text, _ := property(s, "run.stop_timeout")["description"].(string); text != "then KILL to the whole tree" {
		t.Errorf("description %q", text)
	}
	if _, err := Schema("sidecar"); err == nil {
		t.Error("a schema of no kind")
	}
}

func inSchema(s map[string]any, path string) bool {
	for key := range strings.SplitSeq(path, ".") {
		if items, ok := s["items"].(map[string]any); ok {
			s = items
		}
		properties, ok := s["properties"].(map[string]any)
		if !ok {
			return false
		}
		if s, ok = properties[key].(map[string]any); !ok {
			return false
		}
	}
	return true
}

// FuzzParse: any file is either accepted as a whole or refused with at least one problem.
func FuzzParse(f *testing.F) {
	for _, text := range []string{contractController, contractAgent, contractHAProxy, good, "a: &a [*a]\n", "? x\n: y\n", "kind: !!str agent\n<<: {a: b}\n"} {
		f.Add(text)
	}
	for _, kind := range Kinds() {
		text, err := Reference(kind)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := Parse([]byte(text), Options{File: "f.yml", Env: noEnv, Away: true})
		var problems Problems
		if (l == nil) == (err == nil) || (err != nil && (!errors.As(err, &problems) || len(problems) == 0)) {
			t.Errorf("got %v, %v", l, err)
		}
		if l != nil {
			l.Values()
		}
	})
}

// TestVariableThatNobodyReadsIsAMistake: a misspelled variable would silently have no effect.
func TestVariableThatNobodyReadsIsAMistake(t *testing.T) {
	for _, c := range []struct{ variable, want string }{
		{"TANIST_LEASE_TLL=3s", "$TANIST_LEASE_TLL: no key has this variable (did you mean TANIST_LEASE_TTL?)"},
		{"TANIST_ON_STORE_LOS=keep", "$TANIST_ON_STORE_LOS: no key has this variable (did you mean TANIST_ON_STORE_LOSS?)"},
		{"TANIST_YIELDWAIT=3s", "$TANIST_YIELDWAIT: no key has this variable (did you mean TANIST_YIELD_WAIT?)"},
		{"TANIST_RUN_STOP_TIME_OUT=3s", "$TANIST_RUN_STOP_TIME_OUT: no key has this variable (did you mean TANIST_RUN_STOP_TIMEOUT?)"},
		{"TANIST_HAPROXY_BIND=:1", ""}, // of another kind: a host's processes may share a file of them
		{"TANIST_LONG=1", ""},          // nothing that configures
		{"TANIST_TERM=7", ""},
		{"TANIST_REASON=an upgrade", ""}, // what a hook or a controller has from another sidecar
		{"TANIST_ACTIVE_URL=x", ""},
		{"TANIST_EVENT=on_active", ""}, // the same
		{"LEASE_TLL=3s", ""},
	} {
		_, err := Parse([]byte(good), Options{File: "f.yml", Env: func(string) string { return "" }, Environ: []string{c.variable, "PATH=/bin"}})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.variable, err, c.want)
		}
	}
}
