package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/election"
)

// consulCommand runs `consul …` against an agent until the test ends.
func consulCommand(t *testing.T, c *consultest.Cluster, a *consultest.Agent, token string, args ...string) *output {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), c.Binary(), args...)
	cmd.Env = c.Env(a, token)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := &output{}
	cmd.Stdout, cmd.Stderr = out, out
	var running sync.WaitGroup
	must(t, cmd.Start())
	running.Go(func() { _ = cmd.Wait() })
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		running.Wait()
		if t.Failed() {
			t.Logf("consul %s:\n%s", strings.Join(args, " "), out.String())
		}
	})
	return out
}

type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// neighbour returns another address of the agents' own loopback network.
func neighbour(c *consultest.Cluster, last int) string {
	ip := c.Servers[0].IP
	return fmt.Sprintf("%s.%d", ip[:strings.LastIndex(ip, ".")], last)
}

// program serves its name over HTTP on an address until it is stopped.
func program(t *testing.T, address, name string) (stop func()) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	must(t, err)
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, name)
	})}
	server.SetKeepAlivesEnabled(false)
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	stop = sync.OnceFunc(func() { server.Close(); running.Wait() })
	t.Cleanup(stop)
	return stop
}

// TestMeshReachesTheActive: a downstream of the mesh reaches the active through Consul's built-in
// proxy, before and after a failover, with default deny and TLS.
func TestMeshReachesTheActive(t *testing.T) {
	t.Parallel()
	c := locked(t, consultest.Options{Clients: 2})
	raw, err := c.Client(c.Servers[0])
	must(t, err)
	for _, file := range []string{"service-intentions.hcl", "service-resolver.hcl"} {
		cmd := exec.CommandContext(t.Context(), c.Binary(), "config", "write", "../../deploy/consul/"+file)
		cmd.Env = c.Env(c.Servers[0], c.Token)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", file, err, out)
		}
	}
	controller, mesh := granted(t, c, "policy-controller.hcl", "orders"), granted(t, c, "policy-mesh.hcl", "orders")
	web, err := c.Grant(t.Context(), "web", `service "web" { policy = "write" } service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`)
	must(t, err)

	type host struct {
		name, ip string
		store    *Store
		stop     func()
	}
	var hosts [2]host
	for i := range hosts {
		h := host{name: fmt.Sprintf("ctl-%c", 'a'+i), ip: neighbour(c, 201+i)}
		h.store, err = Open(Config{
			Cluster: "orders", Address: c.Clients[i].URL(), Token: controller, TLS: election.TrustFiles{CAFile: c.CAFile}, Log: logger(t),
			LockDelay: time.Second, Service: &Service{Name: "orders", Connect: true},
		})
		must(t, err)
		defer h.store.Close()
		// The proxy of every controller always runs; the catalog decides who gets connections.
		consulCommand(t, c, c.Clients[i], mesh, "connect", "proxy", "-service", "orders",
			"-service-addr", h.ip+":8080", "-listen", h.ip+":21000", "-http-addr", c.Clients[i].URL())
		hosts[i] = h
	}
	upstream := neighbour(c, 210) + ":9191"
	consulCommand(t, c, c.Servers[0], web, "connect", "proxy", "-service", "web", "-upstream", "orders:"+upstream)

	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	through := func() string {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+upstream+"/", nil)
		must(t, err)
		response, err := client.Do(request)
		if err != nil {
			return "error"
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return string(body)
	}
	reaches := func(want string) {
		t.Helper()
		start, got := time.Now(), ""
		for time.Since(start) < 2*patience {
			if got = through(); got == want {
				t.Logf("the mesh reaches %s after %v", want, time.Since(start).Round(time.Millisecond))
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Fatalf("the mesh reaches %q, want %q", got, want)
	}
	serve := func(h *host) (election.LeaseID, election.Active) {
		t.Helper()
		snap, err := h.store.Read(t.Context())
		must(t, err)
		lease, err := h.store.Grant(t.Context(), 10*time.Minute)
		must(t, err)
		a := election.Active{Controller: h.name, Term: snap.Breadcrumb.Term + 1, Incarnation: "1", State: election.StateServing, URL: "http://" + h.ip + ":8080"}
		must(t, h.store.Claim(t.Context(), claimOf(snap, lease, a)))
		h.stop = program(t, h.ip+":8080", h.name)
		must(t, h.store.Publish(t.Context(), lease, a))
		return lease, a
	}
	first, _ := serve(&hosts[0])
	reaches("ctl-a")

	// What Envoy would be told.
	chain, _, err := raw.DiscoveryChain().Get("orders", nil, nil)
	must(t, err)
	if target := chain.Chain.Targets["active.orders.default.default.dc1"]; target == nil || target.Subset.Filter != "Service.Meta.role == active" {
		t.Errorf("the discovery chain has the targets %+v", chain.Chain.Targets)
	}
	endpoints, _, err := raw.Health().Connect("orders", "", true, &api.QueryOptions{Filter: "Service.Meta.role == active"})
	must(t, err)
	if len(endpoints) != 1 || endpoints[0].Service.Address != hosts[0].ip || endpoints[0].Service.Port != 21000 {
		t.Errorf("the mesh has the endpoints %+v", endpoints)
	}

	// An Envoy next to a controller finds its registration. The registration is on no agent, so it
	// asks a server.
	cmd := exec.CommandContext(t.Context(), c.Binary(), "connect", "envoy", "-bootstrap", "-ignore-envoy-compatibility",
		"-node-name", "tanist-orders", "-proxy-id", "orders-sidecar-proxy", "-grpc-addr", "https://"+c.Servers[0].GRPC(), "-grpc-ca-file", c.CAFile)
	cmd.Env = c.Env(c.Servers[0], mesh)
	bootstrap, err := cmd.Output()
	var envoy struct {
		Node struct{ Cluster, ID string } `json:"node"`
	}
	if err != nil || json.Unmarshal(bootstrap, &envoy) != nil || envoy.Node.Cluster != "orders" || envoy.Node.ID != "orders-sidecar-proxy" {
		t.Errorf("Envoy's bootstrap: %v\n%s", err, bootstrap)
	}

	hosts[0].stop()
	must(t, hosts[0].store.Release(t.Context(), election.Release{Lease: first, Breadcrumb: election.Breadcrumb{Term: 1, Controller: "ctl-a", Clean: true}}))
	if got := through(); got != "error" {
		t.Errorf("with nobody active the mesh reaches %q", got)
	}
	serve(&hosts[1])
	reaches("ctl-b")

	prepared(t, c, raw, hosts[1].ip)
}

// prepared asks through the prepared query of deploy/consul.
func prepared(t *testing.T, c *consultest.Cluster, raw *api.Client, want string) {
	t.Helper()
	var definition api.PreparedQueryDefinition
	must(t, json.Unmarshal([]byte(deployed(t, "prepared-query.json")), &definition))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, _, err := raw.PreparedQuery().Create(&definition, new(api.WriteOptions).WithContext(ctx))
	must(t, err)
	got := ask(t, c.Clients[0].DNS(), "orders-active.query.consul", dnsmessage.TypeA)
	if got.String() != want || got.ttls[0] != 0 {
		t.Errorf("the prepared query is answered with %s, TTL %v, want %s", got, got.ttls, want)
	}
}
