package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tanist/tanist/cmd/tanist/config"
)

// TestConfigCheckRunsWhatTheStartRuns: what a package would refuse at the start, the check refuses
// at its position in the file.
func TestConfigCheckRunsWhatTheStartRuns(t *testing.T) {
	const controller = "kind: controller\ncluster: orders\nname: ctl-a\nrun: {command: [/bin/sh], url: \"http://10.0.0.11:8080\"}\n"
	const agent = "kind: agent\ncluster: orders\nname: agt-1\nrun: {command: [/bin/sh]}\n"
	const fleet = "kind: agent\ncluster: orders\nname: agt-1\nagents:\n"
	const proxy = "kind: haproxy\ncluster: orders\nhaproxy: {config: /no/such/haproxy.cfg, bind: \":8080\", admin_socket: /run/a.sock}\n"
	const address = "kind: vip\ncluster: orders\ncontroller: ctl-a\n"
	token, short := filepath.Join(t.TempDir(), "token"), filepath.Join(t.TempDir(), "short")
	for file, text := range map[string]string{token: "0123456789abcdef\nfedcba9876543210\n", short: "0123456789abcdef\nshort\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	repository := func(keys string) string { return controller + "repository: {dsn_file: /dev/null, " + keys + "}\n" }
	for _, c := range []struct{ name, text, want string }{
		{"a virtual IP", address + "virtual_ip: [{address: 10.0.0.100/24, interface: eth0}]\n", ""},
		{"a virtual IP without a prefix", address + "virtual_ip: [{address: 10.0.0.100, interface: eth0}]\n", "f.yml:4:24: virtual_ip[0].address: cannot use \"10.0.0.100\""},
		{"a virtual IP on no interface", address + "virtual_ip: [{address: 10.0.0.100/24}]\n", "virtual_ip[0].interface: cannot determine the interface"},
		{"a virtual IP whose process answers everybody", address + "virtual_ip: [{address: 10.0.0.100/24, interface: eth0}]\nlisten: {http: \":8740\"}\n", "f.yml:5:16: listen.http: other hosts reach :8740"},
		{"no virtual IP", address, "virtual_ip: it is empty"},
		{"a virtual IP of no controller", "kind: vip\ncluster: orders\nvirtual_ip: [{address: 10.0.0.100/24, interface: eth0}]\n", "controller: it is missing"},
		{"a controller", controller, ""},
		{"an agent", agent, ""},
		{"a proxy", proxy + "controllers: [\"http://10.0.0.11:8080\"]\n", ""},
		{"an endpoint without its colon", controller + "etcd: {endpoints: [\"http//10.0.0.1:2379\"]}\n", "f.yml:5:20: etcd.endpoints[0]: \"http//10.0.0.1:2379\""},
		{"an endpoint without a port", controller + "etcd: {endpoints: [\"http://10.0.0.1:2379\", \"http://10.0.0.2\"]}\n", "f.yml:5:44: etcd.endpoints[1]: \"http://10.0.0.2\" has no host or no port"},
		{"an endpoint with a password", agent + "etcd: {endpoints: [\"http://a:b@h:2379\"]}\n", "f.yml:5:20: etcd.endpoints[0]: it holds a user name"},
		{"an endpoint given twice", proxy + "etcd: {endpoints: [\"http://h:2379\", \"http://h:2379\"]}\n", "etcd.endpoints[1]: http://h:2379 is listed twice"},
		{"a prefix with a slash too many", controller + "etcd: {prefix: /tanist/}\n", "f.yml:5:16: etcd.prefix: \"/tanist/\""},
		{"another Consul of another scheme", controller + "store: consul\nconsul: {others: [\"https://10.0.0.2:8501\"]}\n", "f.yml:6:19: consul.others[0]: \"https://10.0.0.2:8501\""},
		{"a Consul address without a scheme", controller + "store: consul\nconsul: {address: \"localhost:8500\"}\n", "f.yml:6:19: consul.address: \"localhost:8500\""},
		{"a check without a name", controller + "health: {checks: [{tcp: \"h:1\"}]}\n", "health.checks[0].name: it is missing"},
		{"two checks of a name", controller + "health: {checks: [{name: a, tcp: \"h:1\"}, {name: a, tcp: \"h:2\"}]}\n", "health.checks[1].name: \"a\" is the name of another check"},
		{"a check with everything", controller + "health: {checks: [{name: a, http: \"https://h:1/x\", method: HEAD, headers: {Host: x}, expect: [\"204\"], tls: {server_name: x}}]}\n", ""},
		{"a method that is none", controller + "health: {checks: [{name: a, http: \"http://h:1/x\", method: FETCH}]}\n", "health.checks[0].method: \"FETCH\" is not one of GET"},
		{"TLS without TLS", controller + "health: {checks: [{name: a, http: \"http://h:1/x\", tls: {insecure_skip_verify: true}}]}\n", "f.yml:5:51: health.checks[0].tls: it is of checks by https, tcp and grpc"},
		{"a certificate authority that is away", controller + "health: {checks: [{name: a, tcp: \"h:1\", tls: {ca_file: /no/such}}]}\n", "health.checks[0].tls.ca_file: open /no/such: no such file"},
		{"a certificate without its key", controller + "health: {checks: [{name: a, grpc: \"h:1\", tls: {cert_file: /etc/hostname}}]}\n", "health.checks[0]: cert_file and key_file belong together"},
		{"an authority without effect", controller + "health: {checks: [{name: a, grpc: \"h:1\", tls: {ca_file: /etc/hostname, insecure_skip_verify: true}}]}\n", "health.checks[0]: insecure_skip_verify accepts any certificate"},
		{"a body of a response without one", controller + "health: {checks: [{name: a, http: \"http://h:1/x\", method: HEAD, expect_body: x}]}\n", "expect_body: the response to HEAD has no body"},
		{"a header that is none", controller + "health: {checks: [{name: a, http: \"http://h:1/x\", headers: {\"a b\": x}}]}\n", "it can't be a header"},
		{"a header of a port", controller + "health: {checks: [{name: a, tcp: \"h:1\", headers: {a: x}}]}\n", "health.checks[0].headers: it is of checks by http"},
		{"a migration", "kind: controller\ncluster: orders\nname: ctl-a\nrun: {command: [/bin/sh], migrate: {command: [/bin/sh]}, url: \"http://10.0.0.11:8080\"}\n", ""},
		{"a migration that is not there", "kind: controller\ncluster: orders\nname: ctl-a\nrun: {command: [/bin/sh], migrate: {command: [/no/such]}, url: \"http://10.0.0.11:8080\"}\n", "run.migrate.command: stat /no/such"},
		{"a migration of a unit", "kind: controller\ncluster: orders\nname: ctl-a\nrun: {driver: systemd, unit: a.service, migrate: {command: [/bin/sh]}, url: \"http://10.0.0.11:8080\"}\n", "run.migrate: it has no effect with driver systemd"},
		{"a fit check", controller + "fit: [{name: config, command: [/bin/sh, -n, /etc/profile]}]\n", ""},
		{"a fit check of nothing", controller + "fit: [{name: config}]\n", "fit[0].command: it is empty"},
		{"a fit check that is not there", controller + "fit: [{name: config, command: [/no/such/check]}]\n", "f.yml:5:22: fit[0].command: stat /no/such/check"},
		{"two fit checks of a name", controller + "fit: [{name: a, command: [/bin/sh]}, {name: a, command: [/bin/sh]}]\n", "fit[1].name: \"a\" is the name of another check"},
		{"a fit check in no time", controller + "fit: [{name: a, command: [/bin/sh], timeout: 0s}]\n", "fit[0].timeout: it must be more than zero"},
		{"a fit check all the time", controller + "fit: [{name: a, command: [/bin/sh], interval: 0s}]\n", "fit[0].interval: it must be more than zero"},
		{"a rise of nothing", controller + "health: {rise: 0}\n", "f.yml:5:16: health.rise: 0 is not at least 1"},
		{"a repository without a role", repository("secret: {env: PGPASSWORD}"), "f.yml:5:1: repository.role: it is missing"},
		{"no way for the secret", repository("role: r"), "repository.secret: give exactly one of env, passfile, file, gate"},
		{"two ways for the secret", repository("role: r, secret: {env: A, passfile: /a}"), "repository.secret: give exactly one of env, passfile, file, gate"},
		{"no variable", repository("role: r, secret: {env: A-B}"), "repository.secret.env: \"A-B\" can't be the name of a variable"},
		{"a password file somewhere", repository("role: r, secret: {passfile: pgpass}"), "repository.secret.passfile: \"pgpass\" is not an absolute path"},
		{"a secret without a path", repository("role: r, secret: {file: {template: /dev/null}}"), "repository.secret.file: give both template and path"},
		{"a template that can't be read", repository("role: r, secret: {file: {template: /no/such/file, path: /a}}"), "repository.secret.file.template: open /no/such/file"},
		{"a gate nowhere", repository("role: r, secret: {gate: {password_file: /dev/null}}"), "repository.secret.gate.listen: it is missing"},
		{"a gate at no port", repository("role: r, secret: {gate: {listen: 127.0.0.1}}"), "repository.secret.gate.listen: \"127.0.0.1\" is not an address"},
		{"a gate for other hosts", repository("role: r, secret: {gate: {listen: \"10.0.0.1:6432\"}}"), "repository.secret.gate.listen: 10.0.0.1:6432 is not a loopback address"},
		{"a gate without a password", repository("role: r, secret: {gate: {listen: \"127.0.0.1:6432\"}}"), "repository.secret.gate.password_file: without a password"},
		{"a status that is renewed too often", agent + "presence_ttl: 5s\n", "f.yml:5:15: presence_ttl: 5s is not between 10s and 10m"},
		{"an agent that is never probed", agent + "probe: {fall: 0}\n", "f.yml:5:15: probe.fall: 0 is not at least 1"},
		{"an agent that gets no time to stop", strings.Replace(agent, "[/bin/sh]", "[/bin/sh], stop_timeout: 0s", 1), "f.yml:4:41: run.stop_timeout: 0s is not a positive duration"},
		{"one agent of a list that gets no time to stop", fleet + "- {name: a, run: {command: [/bin/sh], stop_timeout: 0s}}\n", "f.yml:5:53: agents[0].run.stop_timeout: 0s is not a positive duration"},
		{"two agents of a name", fleet + "- {name: a, run: {command: [/bin/sh]}}\n- {name: a, run: {command: [/bin/sh]}}\n", "f.yml:6:10: agents[1].name: \"a\" is taken by another agent"},
		{"two clusters of a name behind a proxy", proxy + "clusters:\n- {cluster: orders, bind: \":1\"}\n", "f.yml:5:13: clusters[0].cluster: \"orders\" is listed twice"},
		{"a cluster that users reach nowhere", proxy + "clusters:\n- {cluster: other}\n", "f.yml:5:4: clusters[0].bind: is empty"},
		{"a proxy with one slot", strings.Replace(proxy, "haproxy: {", "haproxy: {slots: 1, ", 1), "f.yml:3:18: haproxy.slots: 1; 2 to 64"},
		{"who may change something", controller + "listen: {admin: \"unix:/run/a.sock\", access: [{role: operator, user: root}, {role: admin, group: root}]}\n", ""},
		{"a role that is none", controller + "listen: {access: [{role: boss, token_file: " + token + "}]}\n", "f.yml:5:26: listen.access[0].role: \"boss\" is not one of viewer, operator, admin"},
		{"a role of nobody", controller + "listen: {access: [{role: admin}]}\n", "listen.access[0]: give exactly one of user, group, token_file, certificate"},
		{"a user without a socket", controller + "listen: {access: [{role: admin, user: root}]}\n", "listen.access[0]: users and groups are recognized at a Unix socket: set listen.admin"},
		{"a group that is none", controller + "listen: {admin: \"unix:/run/a.sock\", access: [{role: admin, group: no-such}]}\n", "listen.access[0].group: there is no group \"no-such\""},
		{"a token", controller + "listen: {access: [{role: admin, token_file: " + token + ", name: ci}]}\n", ""},
		{"a token in clear", controller + "listen: {http: \":8710\", open: answers, access: [{role: operator, token_file: " + token + "}]}\n", "listen.access[0].token_file: over listen.http :8710 the token would cross the network in clear: set listen.https"},
		{"a viewer's token in clear", controller + "listen: {http: \":8710\", open: answers, access: [{role: viewer, token_file: " + token + "}]}\n", ""},
		{"a token that is too short", controller + "listen: {access: [{role: admin, token_file: " + short + "}]}\n", "listen.access[0].token_file: the secret has fewer than 16 characters"},
		{"a token that is not there", controller + "listen: {access: [{role: admin, token_file: /no/such}]}\n", "listen.access[0].token_file: open /no/such"},
		{"a certificate without an authority", controller + "listen: {access: [{role: admin, certificate: ana}]}\n", "listen.access[0].certificate: client certificates are checked at listen.https"},
		{"https without a certificate", controller + "listen: {https: \":8712\"}\n", "f.yml:5:17: listen.https: it needs a certificate"},
		{"a certificate without https", controller + "listen: {tls: {cert_file: " + token + ", key_file: " + token + "}}\n", "listen.tls: it is set, and listen.https is not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := config.Parse([]byte(c.text), config.Options{File: "f.yml", Env: func(string) string { return "" }})
			if err == nil {
				if err = Check(l); err != nil {
					err = l.Problems(err)
				}
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
