package config

import "testing"

// TestContract: files as the documentation has always had them are accepted, key by key.
func TestContract(t *testing.T) {
	for kind, text := range map[Kind]string{KindController: contractController, KindAgent: contractAgent, KindHAProxy: contractHAProxy} {
		t.Run(string(kind), func(t *testing.T) {
			l, err := Parse([]byte(text), Options{File: string(kind) + ".yml", Away: true, Env: noEnv})
			if err != nil {
				t.Fatal(err)
			}
			if l.Kind != kind {
				t.Errorf("kind %s", l.Kind)
			}
		})
	}
}

const contractController = `
kind: controller                    # next to a controller:  tanist sidecar -c ctl-a.yml
cluster: orders
name: ctl-a                         # default: host name
priority: 100                       # higher is asked first; no automatic failback
store: etcd                         # etcd | consul | plugin:NAME
etcd: {endpoints: ["http://127.0.0.1:2379"]}          # + username, password_file, tls: {ca_file, cert_file, key_file, server_name}
consul: {address: "http://127.0.0.1:8500"}            # + token_file, tls, datacenter, service: {name: orders, connect: false}
lease: {profile: default}           # default | fast; or ttl, validity, renew_every, stop_budget one by one
on_store_loss: stop                 # stop | failsafe | keep
run:
  driver: exec                      # exec | script | systemd | plugin:NAME
  command: [/opt/orders/bin/ordersd, --port, "8080"]
  env: {ORDERS_MODE: active}        # the child also gets TANIST_CLUSTER, TANIST_NAME, TANIST_TERM
  user: ""                          # run the controller as this user
  url: http://10.0.0.11:8080        # what users reach; its port is the startup port
  start_timeout: 30s
  stop_signal: TERM
  stop_timeout: 10s                 # then KILL to the whole tree
  restart: {local: 0, within: 1m}   # mission default: fail over at once
health:
  interval: 1s
  timeout: 800ms
  rise: 1
  fall: 3
  checks:
    - {name: http, http: "http://127.0.0.1:8080/healthz"}     # http | tcp | exec | grpc | postgres | plugin:NAME
repository:
  dsn_file: /run/secrets/repository_sidecar   # the sidecar's own login: may only call the fence functions
  role: orders_a                              # the login role of this controller's program; its secret changes with every term
  secret: {env: PGPASSWORD}                   # how the program gets it: env | passfile: PATH | file: {template, path} | gate
yield_wait: 30s
hooks: {on_active: [], on_passive: [], pre_start: []}
listen: {http: "127.0.0.1:8710", agent_check: "127.0.0.1:8711", admin: "unix:/run/tanist/orders-ctl-a.sock"}
log: {level: info, format: auto}    # auto | console | json
`

const contractAgent = `
kind: agent                         # next to an agent:  tanist agentwatch -c agt-1.yml
cluster: orders
name: agt-1
store: etcd
etcd: {endpoints: ["http://127.0.0.1:2379"]}
run:
  command: [/opt/orders/bin/agent, --server, "{{ .Active.URL }}"]
  files:                            # rendered before each start
    - {template: /etc/orders/agent.conf.tmpl, path: /etc/orders/agent.conf, mode: "0640"}
  stop_timeout: 5s
on_change: {action: restart, splay: 0s}       # restart | signal:HUP | exec
probe: {interval: 1s, timeout: 800ms, fall: 3}         # the agent's own view of the controller's startup port
controllers: []                     # optional: URLs that may ever be active; also probed when the store is away
retries: {count: 10, every: 2s}     # neither controller reachable that often: force-stop the agent and exit 69
listen: {http: "127.0.0.1:8720"}
`

const contractHAProxy = `
kind: haproxy                       # next to HAProxy:  tanist haproxy -c proxy.yml
cluster: orders
store: etcd
etcd: {endpoints: ["http://127.0.0.1:2379"]}
controllers: []
haproxy:
  template: ""                      # empty: the built-in template
  config: /etc/haproxy/haproxy.cfg
  bind: ":8080"
  admin_socket: /run/haproxy/admin.sock
  master_socket: /run/haproxy/master.sock
  spawn: false                      # true: Tanist starts and owns HAProxy itself
listen: {http: "127.0.0.1:8730"}
`
