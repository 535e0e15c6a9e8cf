package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
	"github.com/tanist/tanist/plugin"
	"github.com/tanist/tanist/plugin/host"
)

// TestMain makes the test binary the plugin, and a controller.
func TestMain(m *testing.M) {
	if os.Getenv("TANIST_PLUGIN") != "" {
		main()
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "--controller" {
		controller(os.Args[2])
	}
	os.Exit(m.Run())
}

// patience bounds waits for something that must happen, on a loaded machine.
const patience = time.Minute

// servers is one server, which can be restarted with its data.
type servers struct {
	options server.Options
	running *server.Server
}

func start(t testing.TB) *servers {
	s := &servers{options: server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true, SyncAlways: true,
	}}
	s.run(t)
	t.Cleanup(s.stop)
	return s
}

func (s *servers) run(t testing.TB) {
	t.Helper()
	options := s.options
	running, err := server.NewServer(&options)
	if err != nil {
		t.Fatal(err)
	}
	running.Start()
	if !running.ReadyForConnections(patience) {
		t.Fatal("the server does not start")
	}
	s.running, s.options.Port = running, running.Addr().(*net.TCPAddr).Port
}

func (s *servers) stop() {
	s.running.Shutdown()
	s.running.WaitForShutdown()
}

var clusters atomic.Int64

// harness is one new cluster in a server.
type harness struct {
	*servers

	cluster string
	spec    host.Spec
}

func (h *harness) settings(url string) plugin.Settings {
	return plugin.Settings{Cluster: h.cluster, Values: map[string]string{"servers": url}}
}

func (h *harness) open(t testing.TB, url string) *host.Store {
	t.Helper()
	s, err := host.OpenStore(t.Context(), h.spec, host.StoreOptions{Settings: h.settings(url), RereadEvery: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Open implements [electiontest.Harness]: through the plugin.
func (h *harness) Open(t *testing.T) electiontest.Host { return h.open(t, h.running.ClientURL()) }

// OpenLinked implements [electiontest.Linker]: the link is between the plugin and the server.
func (h *harness) OpenLinked(t *testing.T) (electiontest.Host, electiontest.Link) {
	p := electiontest.NewProxy(t, strings.TrimPrefix(h.running.ClientURL(), "nats://"))
	return h.open(t, "nats://"+p.Addr()), p
}

// direct is the store without a plugin, for what a stranger does.
func (h *harness) direct(t testing.TB) *store {
	t.Helper()
	s, err := open(h.settings(h.running.ClientURL()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// edit changes the document as `nats kv put` does.
func (h *harness) edit(t testing.TB, change func(*state)) {
	t.Helper()
	s := h.direct(t)
	for {
		m, err := s.get(t.Context(), stateKey)
		if err != nil {
			t.Fatal(err)
		}
		st := &state{Keys: map[string]key{}}
		if !m.gone {
			if err := json.Unmarshal(m.data, st); err != nil {
				t.Fatal(err)
			}
		}
		st.Revision++
		change(st)
		data, err := json.Marshal(st)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = s.put(t.Context(), stateKey, data, m.seq, 0); err == nil {
			return
		}
		if !errors.Is(err, errOther) {
			t.Fatal(err)
		}
	}
}

// Overwrite implements [electiontest.Stranger].
func (h *harness) Overwrite(t *testing.T, name, value string) {
	h.edit(t, func(st *state) { st.Keys[name] = key{Value: []byte(value), Version: st.Revision} })
}

// OverwriteKept implements [electiontest.LeaseKeeper].
func (h *harness) OverwriteKept(t *testing.T, name, value string) {
	h.edit(t, func(st *state) {
		st.Keys[name] = key{Value: []byte(value), Version: st.Revision, Lease: st.Keys[name].Lease}
	})
}

// Remove implements [electiontest.Stranger].
func (h *harness) Remove(t *testing.T, name string) {
	h.edit(t, func(st *state) { delete(st.Keys, name) })
}

// EndLease implements [electiontest.Ender].
func (h *harness) EndLease(t *testing.T, id election.LeaseID) {
	if err := h.direct(t).Revoke(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// Stop implements [electiontest.Restarter].
func (h *harness) Stop(*testing.T) { h.stop() }

// Start implements [electiontest.Restarter].
func (h *harness) Start(t *testing.T) { h.run(t) }

func newHarness(s *servers, spec host.Spec) *harness {
	return &harness{s, fmt.Sprintf("orders.%d", clusters.Add(1)), spec}
}

// installed returns the test binary as the plugin.
func installed(t testing.TB) host.Spec {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, host.FileName("nats")), b, 0o755) //nolint:gosec // a program
	}
	if err == nil {
		err = os.Chmod(dir, 0o755) //nolint:gosec // a directory
	}
	if err != nil {
		t.Fatal(err)
	}
	return host.Spec{
		Name: "nats", Dirs: []string{dir}, Env: []string{"PATH=" + os.Getenv("PATH")},
		Log: zerolog.New(zerolog.NewTestWriter(t)).With().Timestamp().Logger(),
	}
}

// TestContract: the whole contract, through the plugin.
func TestContract(t *testing.T) {
	s, spec := start(t), installed(t)
	electiontest.Contract(t, func(*testing.T) electiontest.Harness { return newHarness(s, spec) })
}

// TestContractInside: the same without the plugin around it.
func TestContractInside(t *testing.T) {
	if long, _ := strconv.ParseBool(os.Getenv("TANIST_LONG")); !long {
		t.Skip("TANIST_LONG is not set")
	}
	s := start(t)
	electiontest.Contract(t, func(*testing.T) electiontest.Harness { return inside{newHarness(s, host.Spec{})} })
}

// inside opens its stores in this process.
type inside struct{ *harness }

// Open implements [electiontest.Harness].
func (h inside) Open(t *testing.T) electiontest.Host {
	return plugin.NewBackend(h.direct(t), plugin.Options{Traits: named(), RereadEvery: 2 * time.Second})
}

// OpenLinked implements [electiontest.Linker].
func (h inside) OpenLinked(t *testing.T) (electiontest.Host, electiontest.Link) {
	p := electiontest.NewProxy(t, strings.TrimPrefix(h.running.ClientURL(), "nats://"))
	s, err := open(h.settings("nats://" + p.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	return plugin.NewBackend(s, plugin.Options{Traits: named(), RereadEvery: 2 * time.Second}), p
}

func named() election.Traits {
	t := traits()
	t.Name = "nats"
	return t
}

// TestSettings: wrong ones are refused, and a server that is away is no reason.
func TestSettings(t *testing.T) {
	good := map[string]string{"servers": "nats://127.0.0.1:1"}
	for name, value := range map[string]string{"": "", "colour": "red", "replicas": "0", "servers": "nats://127.0.0.1:x"} {
		values := maps.Clone(good)
		if name != "" {
			values[name] = value
		}
		s, err := open(plugin.Settings{Cluster: "orders", Values: values})
		if s != nil {
			_ = s.Close()
		}
		if refused := errors.Is(err, plugin.ErrSettings); refused != (name != "") {
			t.Errorf("%s: %s is refused: %v, %v", name, value, refused, err)
		}
	}
}

// TestForgottenKeysAreRemoved: what was bound to a lease does not stay in the document for ever.
func TestForgottenKeysAreRemoved(t *testing.T) {
	h := newHarness(start(t), host.Spec{})
	s := h.direct(t)
	id, err := s.Grant(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, lease election.LeaseID) {
		if _, err := s.Commit(t.Context(), plugin.Change{Writes: []plugin.Write{{Key: name, Lease: lease}}}); err != nil {
			t.Fatal(err)
		}
	}
	write("agents/a", id)
	if err := s.Revoke(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; {
		write("settings", "")
		m, err := s.get(t.Context(), stateKey)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(m.data), "agents/a") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the document is %s", m.data)
		}
	}
}
