package haproxy

import (
	"fmt"
	"hash/maphash"
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
	"testing/synctest"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
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
		"\ncontrollers[0]: ", "\ncontrollers[3]: \"http://b:80\" is listed twice", "clusters[0].bind: \":1\\nevil\" has a control character",
		"clusters[1].cluster: \"x\" is listed twice",
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
	second := testbed.Address(t)
	b.cfg.StatsBind = testbed.Address(t)
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

// TestCheckActiveAsksTheSidecar: with check: active, HAProxy takes a controller out as soon as its
// sidecar reports that it is not active, even with Tanist dead.
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

// TestStaticConfiguration runs deploy/haproxy/static.cfg against two sidecars' /active and
// agent-check, without any Tanist next to HAProxy.
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

// TestHungHAProxy: a stopped HAProxy does not stop Tanist, and is corrected when it continues.
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

// TestStoreThatInsistsOnALowerTermIsRouted: after a restore of the store traffic recovers by
// itself.
func TestStoreThatInsistsOnALowerTermIsRouted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, err := Config{Clusters: []Cluster{{Name: "orders"}}, Hooks: []Hook{{Command: []string{"true"}}}}.complete()
		if err != nil {
			t.Fatal(err)
		}
		p := &Proxy{cfg: cfg, log: zerologNop(), status: Status{Clusters: []ClusterStatus{{Name: "orders"}}}}
		r := &run{Proxy: p, ctx: t.Context(), inbox: make(chan func()), said: map[string]string{}, seed: maphash.MakeSeed()}
		to := &route{cl: cfg.Clusters[0], filter: cfg.Clusters[0].filter()}
		say := func(term election.Term) {
			r.sighting(to, election.Sighting{Active: &election.Active{Controller: "ctl-a", Term: term, State: election.StateStarting, URL: "http://127.0.0.1:1"}})
		}
		say(election.MaxTerm)
		say(7)
		if to.target.Term != election.MaxTerm {
			t.Fatalf("%+v", to.target)
		}
		began := time.Now()
		(<-r.inbox)()
		if to.target.Term != 7 || time.Since(began) != election.LowerFor || p.Status().Clusters[0].Term != 7 {
			t.Errorf("after %v: %+v, %+v", time.Since(began), to.target, p.Status())
		}
		say(3)
		say(8) // newer: what was to be judged again is not
		synctest.Wait()
		time.Sleep(time.Minute)
		if to.target.Term != 8 {
			t.Errorf("%+v", to.target)
		}
	})
}

// The proxy accepts what `config check` accepts as run.url: it renders, HAProxy loads it, and
// traffic is routed to it.
func TestWhateverCheckAcceptsIsRouted(t *testing.T) {
	a := newController(t, "ctl-a")
	_, port, _ := net.SplitHostPort(a.addr)
	b := newBed(t, nil)
	b.up()
	for i, raw := range []string{
		"http://127.0.0.1:" + port, "http://127.0.0.1:" + port + "/", "HTTP://LocalHost:" + port + "/app/~x/%2F", "http://[::ffff:127.0.0.1]:" + port + "/a.b/c-d_e",
	} {
		if _, err := election.ParseURL(raw); err != nil {
			t.Fatal(err)
		}
		r := a.record(election.Term(2*i+1), election.StateServing)
		r.URL = raw
		b.store.publish(r)
		b.routedTo(a)
		b.store.publish(election.Active{Controller: "ctl-a", Term: election.Term(2*i + 2), State: election.StateStarting})
		b.until("nobody is in rotation", func() bool { return len(b.proxy.Status().Clusters[0].InRotation) == 0 })
	}
	cfg := b.cfg
	cfg.Clusters = nil
	records := map[string]election.Active{}
	for i, raw := range []string{
		"http://10.0.0.1", "https://10.0.0.1:8443/x", "http://[2001:db8::1]:8080", "https://[::1]", "http://a_b.Example.:1/", "http://x-1:65535/%C3%A9",
		"http://" + strings.Repeat("a", 63) + ".b/" + strings.Repeat("c", 900),
	} {
		if _, err := election.ParseURL(raw); err != nil {
			t.Fatal(err)
		}
		for _, list := range [][]string{nil, {raw}} {
			name := fmt.Sprintf("c%d-%d", i, len(list))
			cfg.Clusters = append(cfg.Clusters, Cluster{Name: name, Bind: fmt.Sprintf("127.0.0.1:%d", 20000+len(cfg.Clusters)), Mode: ModeTCP, Controllers: list})
			records[name] = election.Active{Controller: "ctl-a", Term: 1, State: election.StateServing, URL: raw}
		}
	}
	cfg.ConfigFile = filepath.Join(t.TempDir(), "haproxy.cfg")
	text, err := Render(cfg, records)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.ConfigFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Binary = "haproxy"
	if err := cfg.check(t.Context(), cfg.ConfigFile, "haproxy.cfg"); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
}

// An accepted URL means exactly one address in a configuration.
func FuzzRender(f *testing.F) {
	for _, s := range []string{"http://10.0.0.1:80", "https://a.b/c", "http://[::1]:5", "http://x;\n server evil", "http://%41:1", "http://a_b./%2F"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := election.ParseURL(raw)
		if err != nil {
			return
		}
		cfg := Config{
			Clusters:   []Cluster{{Name: "orders", Bind: ":1", Mode: ModeTCP, Controllers: []string{raw}}},
			ConfigFile: "/nowhere/haproxy.cfg", AdminSocket: "/run/a", MasterSocket: "/run/m",
		}
		text, err := Render(cfg, map[string]election.Active{"orders": {Controller: "a", Term: 1, State: election.StateServing, URL: raw}})
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		body, servers := string(text[strings.IndexByte(string(text), '\n')+1:]), 0
		for line := range strings.Lines(body) {
			if words := strings.Fields(line); len(words) > 0 && words[0] == "server" {
				servers++
				if !slices.Equal(words, []string{"server", serverName(u), u.Address()}) {
					t.Errorf("%q: %q", raw, line)
				}
			}
		}
		if servers != 1 {
			t.Errorf("%q makes %d servers:\n%s", raw, servers, body)
		}
	})
}

// Any response on the admin socket is parsed without a panic, and only addresses are taken for
// addresses.
func FuzzAnswers(f *testing.F) {
	f.Add("Name: HAProxy\nPid: 7\ndescription: tanist abc\n\n1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state\n3 orders 1 c1 10.0.0.1 2 0\n\n# pxname,svname,qcur,scur\norders,c1,0,3\n\n")
	f.Add("# be_id\n\x00\n# pxname,\n\"\n")
	f.Add("#<PID> <type> <reloads> <uptime> <version>\n12 master 3 [failed: 1] 0d 2.6\n# workers\n13 worker 0\n# old workers\n11 worker 1\n")
	f.Fuzz(func(t *testing.T, answer string) {
		if v, err := parseLook(answer); err == nil && v.pid == 0 {
			t.Errorf("%q was accepted as an empty report", answer)
		}
		if p, err := parseProcesses(answer); err == nil && slices.Contains(p.old, p.worker) && p.worker != 0 {
			t.Logf("%q: %+v", answer, p)
		}
	})
}
