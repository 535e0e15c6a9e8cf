package haproxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

func TestPlan(t *testing.T) {
	at := netip.MustParseAddrPort
	fixed := Cluster{Backend: "o", Controllers: []string{"http://10.0.0.1:80", "http://10.0.0.2:80"}}
	slots := Cluster{Backend: "o", Slots: 2}
	const a, b = "10.0.0.1:80", "10.0.0.2:80"
	in := func(n, addr string) server { return server{name: n, addr: at(addr), up: true} }
	out := func(n, addr string) server { return server{name: n, addr: at(addr), admin: 1} }
	have := func(s ...server) map[string]server {
		m := map[string]server{}
		for _, x := range s {
			m[x.name] = x
		}
		return m
	}
	for _, tc := range []struct {
		name   string
		cl     Cluster
		d      desired
		have   map[string]server
		want   []string
		chosen string
	}{
		{"nothing learned, nothing done", fixed, desired{}, have(in(a, a), in(b, b)), nil, ""},
		{"vacant: all out", fixed, desired{known: true}, have(in(a, a), out(b, b)), []string{"set server o/" + a + " state maint", "shutdown sessions server o/" + a}, ""},
		{"as it should be", fixed, desired{known: true, active: true, server: a, addr: at(a)}, have(in(a, a), out(b, b)), nil, a},
		{
			"move: old out and cut before new in", fixed,
			desired{known: true, active: true, server: b, addr: at(b), accept: true},
			have(in(a, a), out(b, b)),
			[]string{"set server o/" + a + " state maint", "shutdown sessions server o/" + a, "set server o/" + b + " state ready"},
			b,
		},
		{
			"startup port closed: nobody in", fixed,
			desired{known: true, active: true, server: b, addr: at(b)},
			have(in(a, a), out(b, b)),
			[]string{"set server o/" + a + " state maint", "shutdown sessions server o/" + a},
			b,
		},
		{
			"two in rotation", fixed,
			desired{known: true, active: true, server: b, addr: at(b)},
			have(in(a, a), in(b, b)),
			[]string{"set server o/" + a + " state maint", "shutdown sessions server o/" + a},
			b,
		},
		{"stopping, nothing waits: stays in", fixed, desired{known: true, active: true, drain: true, server: a, addr: at(a)}, have(in(a, a)), nil, a},
		{"stopping: drained", fixed, desired{known: true, active: true, drain: true, queue: true, server: a, addr: at(a)}, have(in(a, a)), []string{"set server o/" + a + " state drain"}, a},
		{"stopping and out: stays out", fixed, desired{known: true, active: true, drain: true, server: a, addr: at(a)}, have(out(a, a)), nil, a},
		{"sessions left over", fixed, desired{known: true}, have(server{name: a, addr: at(a), admin: 1, sessions: 2}), []string{"shutdown sessions server o/" + a}, ""},
		{
			"slots: a fresh one gets the address", slots,
			desired{known: true, active: true, addr: at(b), accept: true},
			have(in("c1", a), out("c2", nowhere.String())),
			[]string{"set server o/c1 state maint", "shutdown sessions server o/c1", "set server o/c2 addr 10.0.0.2 port 80", "set server o/c2 state ready"},
			"c2",
		},
		{
			"slots: the one that has it", slots,
			desired{known: true, active: true, addr: at(b), accept: true},
			have(out("c1", b), out("c2", a)),
			[]string{"set server o/c1 state ready"},
			"c1",
		},
		{
			"slots: the one that is unused for longest", slots,
			desired{known: true, active: true, addr: at("10.0.0.3:80"), accept: true},
			have(server{name: "c1", addr: at(a), admin: 1, since: time.Second}, server{name: "c2", addr: at(b), admin: 1, since: time.Minute}),
			[]string{"set server o/c2 addr 10.0.0.3 port 80", "set server o/c2 state ready"},
			"c2",
		},
		{
			"an address moved under a name", fixed,
			desired{known: true, active: true, server: a, addr: at("10.0.0.9:80"), accept: true},
			have(in(a, a)),
			[]string{"set server o/" + a + " state maint", "shutdown sessions server o/" + a, "set server o/" + a + " addr 10.0.0.9 port 80", "set server o/" + a + " state ready"},
			a,
		},
	} {
		got, chosen := plan(tc.cl, tc.d, tc.have)
		if !slices.Equal(got, tc.want) || chosen != tc.chosen {
			t.Errorf("%s:\n got %q in %q\nwant %q in %q", tc.name, got, chosen, tc.want, tc.chosen)
		}
	}
}

func TestAgentCheckWords(t *testing.T) {
	for s, want := range map[election.State]string{
		election.StateServing: "ready up\n", election.StateStopping: "drain up\n", election.StateReady: "maint\n", election.StateStarting: "maint\n",
		election.StateUnfit: "maint\n", election.StateYielding: "maint\n", election.StatePaused: "maint\n", election.StateFailed: "down#a b\n",
	} {
		if got := AgentCheck(s, "a\nb"); got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
}

func TestDiff(t *testing.T) {
	var old, changed []string
	for i := range 40 {
		old = append(old, fmt.Sprint("line ", i))
	}
	changed = slices.Clone(old)
	changed[5] = "changed"
	changed = slices.Delete(changed, 30, 31)
	got := Diff("a", "b", []byte(strings.Join(old, "\n")+"\n"), []byte(strings.Join(changed, "\n")+"\n"))
	want := `--- a
+++ b
@@ -3,7 +3,7 @@
 line 2
 line 3
 line 4
-line 5
+changed
 line 6
 line 7
 line 8
@@ -28,7 +28,6 @@
 line 27
 line 28
 line 29
-line 30
 line 31
 line 32
 line 33
`
	if got != want {
		t.Errorf("got\n%s", got)
	}
	if d := Diff("a", "b", []byte("x\n"), []byte("x\n")); d != "" {
		t.Errorf("equal texts differ: %s", d)
	}
}

func TestRenderTouchesNothing(t *testing.T) {
	b := newBed(t, nil)
	r := election.Active{Controller: "ctl-a", Term: 4, State: election.StateServing, URL: "http://10.0.0.1:80"}
	text, err := Render(b.cfg, map[string]election.Active{"orders": r})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "server c1 10.0.0.1:80\n") || !strings.Contains(string(text), "server c2 192.0.2.1:1 disabled\n") {
		t.Errorf("got\n%s", text)
	}
	if l, _ := os.ReadDir(b.dir); len(l) != 0 {
		t.Errorf("files were made: %v", l)
	}
	r.URL = "http://x;\nserver evil"
	if _, err := Render(b.cfg, map[string]election.Active{"orders": r}); err == nil {
		t.Error("an evil URL was rendered")
	}
}

func TestBadConfigurationIsNamedAtOnce(t *testing.T) {
	_, err := New(Config{
		Clusters: []Cluster{
			{Name: "or ders", Bind: "", Mode: "udp", Check: "x", Slots: 1, HoldRequests: -1, Controllers: []string{"nope", "https://a", "http://b", "http://b:80"}},
			{Name: "x", Bind: ":1\nevil"},
			{Name: "x", Bind: ":2"},
		},
		ConfigFile: "relative", SocketMode: "rw", Reconcile: 1, Spawn: true, User: "a b", Hooks: []Hook{{}},
	}, nil, zerologNop())
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`cluster: "or ders"`, "haproxy.bind: is empty", `haproxy.mode: "udp"`, `haproxy.check: "x"`, "haproxy.slots: 1", "haproxy.hold_requests: -1ns",
		"\ncontrollers[0]: ", "\ncontrollers[3]: \"http://b:80\" is there twice", "clusters[0].bind: \":1\\nevil\" has a control character",
		"clusters[1].cluster: \"x\" is there twice",
		"haproxy.config", "admin_socket", "master_socket", "socket_mode", "reconcile", "haproxy.user", "\nhooks[0].command: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestTLSIsPassedThrough(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "secret") }))
	defer srv.Close()
	b := newBed(t, func(c *Config) { c.Clusters[0].Mode = ModeTCP })
	b.up()
	b.store.publish(election.Active{Controller: "ctl-a", Term: 1, State: election.StateServing, URL: srv.URL})
	client := srv.Client() // trusts the controller's own certificate
	client.Transport.(*http.Transport).DisableKeepAlives = true
	b.until("it answers through TLS", func() bool {
		resp, err := client.Get("https://" + b.front)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.TLS != nil && resp.TLS.PeerCertificates[0].Equal(srv.Certificate())
	})
}

func TestSeveralClustersInOneHAProxy(t *testing.T) {
	a, c := newController(t, "ctl-a"), newController(t, "ctl-b")
	b := newBed(t, nil)
	second := freeAddr(t)
	b.cfg.StatsBind = freeAddr(t)
	b.cfg.Clusters = append(b.cfg.Clusters, Cluster{Name: "billing", Backend: "prefix-billing", Bind: second, Mode: ModeTCP, Controllers: []string{c.url()}, HoldRequests: time.Second})
	other := &store{}
	b.startWith(map[string]Source{"orders": b.store, "billing": other})
	b.startHAProxy()
	b.store.publish(a.record(1, election.StateServing))
	other.publish(c.record(5, election.StateServing))
	b.routedTo(a)
	front := b.front
	b.front = second
	b.routedTo(c)
	other.vacate()
	b.until("billing leads nowhere", func() bool { code, _ := b.get(); return code != 200 })
	b.front = front
	b.routedTo(a)
	resp, err := http.Get("http://" + b.cfg.StatsBind + "/;csv")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if !strings.Contains(string(text), "MAINT") || strings.Contains(string(text), "DOWN") {
		t.Errorf("the statistics page: %s", text)
	}
}

func TestAdminSocketIsPrivate(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Spawn = true })
	b.up()
	for _, s := range []string{b.cfg.AdminSocket, b.cfg.MasterSocket} {
		st, err := os.Stat(s)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", s, st.Mode(), err)
		}
	}
}

// TestCheckActiveAsksTheSidecar: with check: active, HAProxy takes a controller out as soon as its sidecar says that it
// is not active, even with Tanist dead.
func TestCheckActiveAsksTheSidecar(t *testing.T) {
	a := newController(t, "ctl-a")
	var active atomic.Bool
	active.Store(true)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/active" || !active.Load() {
			w.WriteHeader(503)
		}
	}))
	defer api.Close()
	b := newBed(t, func(c *Config) { c.Clusters[0].Check = CheckActive })
	b.up()
	r := a.record(1, election.StateServing)
	r.API = api.URL
	b.store.publish(r)
	b.routedTo(a)
	b.until("the file knows", func() bool { return strings.Contains(b.file(), strings.TrimPrefix(api.URL, "http://")) })
	b.stopTanist()
	active.Store(false)
	waitFor(t, "the check takes it out", func() bool { code, _ := b.get(); return code == 503 })
	active.Store(true)
	waitFor(t, "and lets it in", func() bool { code, _ := b.get(); return code == 200 })
	// Still so after a restart of HAProxy alone.
	b.killHAProxy()
	b.startHAProxy()
	waitFor(t, "it serves", func() bool { code, _ := b.get(); return code == 200 })
	active.Store(false)
	waitFor(t, "the check takes it out again", func() bool { code, _ := b.get(); return code == 503 })
}

// TestStaticConfiguration runs deploy/haproxy/static.cfg against two sidecars' /active and agent-check: no Tanist beside
// HAProxy at all.
func TestStaticConfiguration(t *testing.T) {
	text, err := os.ReadFile("../deploy/haproxy/static.cfg")
	if err != nil {
		t.Fatal(err)
	}
	b := newBed(t, nil)
	cfg := strings.NewReplacer("bind :8080", "bind "+b.front, "/run/haproxy/admin.sock", b.cfg.AdminSocket, "inter 1s", "inter 100ms", "agent-inter 1s", "agent-inter 100ms").Replace(string(text))
	var state [2]atomic.Value
	var cs [2]*controller
	for i, name := range []string{"ctl-a", "ctl-b"} {
		cs[i] = newController(t, name)
		state[i].Store(election.StateReady)
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if state[i].Load() != election.StateServing {
				w.WriteHeader(503)
			}
		}))
		defer api.Close()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, AgentCheck(state[i].Load().(election.State), ""))
				_ = c.Close()
			}
		}()
		_, apiPort, _ := net.SplitHostPort(strings.TrimPrefix(api.URL, "http://"))
		_, agentPort, _ := net.SplitHostPort(ln.Addr().String())
		old := fmt.Sprintf("server %s 10.0.0.1%d:8080 port 8710 agent-port 8711", name, i+1)
		if !strings.Contains(cfg, old) {
			t.Fatalf("%q is not in static.cfg", old)
		}
		cfg = strings.Replace(cfg, old, fmt.Sprintf("server %s %s port %s agent-port %s", name, cs[i].addr, apiPort, agentPort), 1)
	}
	b.cfg.ConfigFile = filepath.Join(b.dir, "static.cfg")
	if err := os.WriteFile(b.cfg.ConfigFile, []byte(headerMark+"\n"+cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	b.startHAProxy()
	for i := range 4 {
		now, other := i%2, (i+1)%2
		state[other].Store(election.StateReady)
		state[now].Store(election.StateServing)
		waitFor(t, "routed", func() bool { code, body := b.get(); return code == 200 && body == cs[now].name })
		waitFor(t, "the passive is in maintenance", func() bool {
			answer, err := socket{b.cfg.AdminSocket, time.Second}.ask(t.Context(), "show stat -1 4 -1")
			return err == nil && slices.ContainsFunc(strings.Split(answer, "\n"), func(l string) bool {
				return strings.HasPrefix(l, "orders,"+cs[other].name+",") && strings.Contains(l, ",MAINT")
			})
		})
	}
	state[1].Store(election.StateFailed)
	waitFor(t, "the failed one is out", func() bool { code, _ := b.get(); return code == 503 })
}

// TestHungHAProxy: one that is stopped does not stop Tanist, and is set right when it goes on.
func TestHungHAProxy(t *testing.T) {
	a, c := newController(t, "ctl-a"), newController(t, "ctl-b")
	b := newBed(t, nil)
	b.up()
	b.store.publish(a.record(1, election.StateServing))
	b.routedTo(a)
	pid := b.proxy.Status().HAProxyPID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.store.publish(c.record(2, election.StateServing))
	b.until("the hang is known", func() bool { return b.proxy.Status().HAProxyError != "" })
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	b.routedTo(c)
}

func FuzzParseEndpoint(f *testing.F) {
	for _, s := range []string{"http://10.0.0.1:80", "https://a.b/c", "tcp://[::1]:5", "http://x;\n server evil", "http://%41:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseEndpoint(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(e.host, " \t\r\n;#\"'\\/%") || e.port == 0 || e.host == "" {
			t.Errorf("%q gives %+v", s, e)
		}
	})
}
