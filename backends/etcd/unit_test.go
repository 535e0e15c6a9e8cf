package etcd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/election"
)

func TestConfig(t *testing.T) {
	ok := func() Config {
		return Config{Cluster: "orders", Endpoints: []string{"http://127.0.0.1:2379"}}
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string // part of the error; empty: none
	}{
		"fine":          {func(*Config) {}, ""},
		"no scheme":     {func(c *Config) { c.Endpoints = []string{"10.0.0.1:2379", "etcd-2:2379"} }, ""},
		"unix":          {func(c *Config) { c.Endpoints = []string{"unix:///run/etcd.sock"} }, ""},
		"no cluster":    {func(c *Config) { c.Cluster = "" }, "cluster"},
		"slash":         {func(c *Config) { c.Cluster = "a/b" }, "cluster"},
		"prefix":        {func(c *Config) { c.Prefix = "/x/" }, "prefix"},
		"no endpoints":  {func(c *Config) { c.Endpoints = nil }, "etcd.endpoints: it is empty"},
		"no port":       {func(c *Config) { c.Endpoints = []string{"http://a:1", "http://b"} }, "endpoints[1]"},
		"no port alone": {func(c *Config) { c.Endpoints = []string{"http://10.0.0.1"} }, "no port"},
		"no colon":      {func(c *Config) { c.Endpoints = []string{"http//10.0.0.1:2379"} }, "lacks the colon"},
		"port 0":        {func(c *Config) { c.Endpoints = []string{"http://b:0"} }, "port"},
		"port 99999":    {func(c *Config) { c.Endpoints = []string{"b:99999"} }, "port"},
		"not a host":    {func(c *Config) { c.Endpoints = []string{"http://a,b:2379"} }, "character"},
		"unix, no path": {func(c *Config) { c.Endpoints = []string{"unix://"} }, "no path"},
		"scheme":        {func(c *Config) { c.Endpoints = []string{"ftp://b:1"} }, "scheme"},
		"path":          {func(c *Config) { c.Endpoints = []string{"http://b:1/v3"} }, "path"},
		"twice":         {func(c *Config) { c.Endpoints = []string{"http://b:1", "http://b:1"} }, "twice"},
		"user in it":    {func(c *Config) { c.Endpoints = []string{"http://ana:secret@b:1"} }, "user name"},
		"not a URL":     {func(c *Config) { c.Endpoints = []string{"http://ana:secret@b: 1"} }, "not a URL"},
		"password only": {func(c *Config) { c.Password = "secret" }, "username"},
		"username only": {func(c *Config) { c.Username = "ana" }, "password"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := ok()
			test.change(&cfg)
			s, err := Open(cfg)
			if err == nil {
				_ = s.Close()
			}
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error %v, want one about %q", err, test.want)
			case err != nil && strings.Contains(err.Error(), "secret"):
				t.Errorf("a secret is in the error: %v", err)
			}
		})
	}
}

func TestNeeds(t *testing.T) {
	for version, want := range map[string]string{
		"3.3.27": "3.4.38", "3.4.23": "3.4.38", "3.4.38": "", "3.5.0": "3.5.23", "3.5.22": "3.5.23", "3.5.23": "", "3.5.30": "",
		"3.6.0-rc.1": "3.6.5", "3.6.4": "3.6.5", "3.6.5": "", "3.7.3": "", "4.0.0": "", "": "", "3.x.1": "",
	} {
		if got := needs(version); got != want {
			t.Errorf("needs(%q) = %q, want %q", version, got, want)
		}
	}
	if got := warning([]Server{{Endpoint: "a", Version: "3.7.3", ClusterID: 1}, {Endpoint: "b", Version: "3.7.3", ClusterID: 2}}); !strings.Contains(got, "different etcd clusters") {
		t.Errorf("warning about two clusters: %q", got)
	}
	if got := warning([]Server{{Endpoint: "a", Err: errors.New("away")}, {Endpoint: "b", Version: "3.7.3", ClusterID: 2}}); got != "" {
		t.Errorf("warning about nothing: %q", got)
	}
}

func TestEverythingIsAway(t *testing.T) {
	s, err := Open(Config{Cluster: "orders", Endpoints: []string{"http://127.0.0.1:1", "http://127.0.0.1:2"}})
	if err != nil {
		t.Fatalf("a store that is away can't be opened: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err = s.Read(ctx)
	if err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), "127.0.0.1:2") {
		t.Errorf("error %v, want one that says why for each endpoint", err)
	}
	_ = s.Close()
	if _, err := s.Read(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, open := <-s.Watch(t.Context()); open {
		t.Error("a watch after Close is open")
	}
	if _, open := <-s.Follow(t.Context()); open {
		t.Error("following after Close is open")
	}
}

// What an operator sees with etcdctl.
func TestKeysInEtcdctl(t *testing.T) {
	c := etcdtest.Start(t, 1)
	h := newHarness(t, c)
	s := h.open(t, c.Endpoints()...)
	lease := hold(t, s, 30*time.Second)
	if err := s.Publish(ctxFor(t, patience), lease, election.Active{Controller: "ctl-a", Term: 1, State: election.StateServing, URL: "http://10.0.0.11:8080"}); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"role/ctl-a": "active", "url": "http://10.0.0.11:8080", "term": "1 held controller=ctl-a"} {
		if got := c.Ctl(t, "get", "--print-value-only", h.key(key)); !strings.HasPrefix(got, want) {
			t.Errorf("etcdctl get %s: %q, want %q", h.key(key), got, want)
		}
	}
	if got := c.Ctl(t, "lease", "list"); !strings.Contains(got, string(lease)) {
		t.Errorf("etcdctl lease list: %q, want %s in it", got, lease)
	}
}

func BenchmarkClaim(b *testing.B) {
	c := etcdtest.Start(b, 3)
	s, err := Open(Config{Cluster: "orders", Endpoints: c.Endpoints()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	ctx := b.Context()
	for b.Loop() {
		snap, err := s.Read(ctx)
		if err != nil {
			b.Fatal(err)
		}
		lease, err := s.Grant(ctx, 10*time.Second)
		if err != nil {
			b.Fatal(err)
		}
		term := snap.Breadcrumb.Term + 1
		if err := s.Claim(ctx, election.Claim{
			Lease: lease, TermVersion: snap.TermVersion,
			Active:     election.Active{Controller: "ctl-a", Term: term, State: election.StateStarting},
			Breadcrumb: election.Breadcrumb{Term: term, Controller: "ctl-a"},
		}); err != nil {
			b.Fatal(err)
		}
		if err := s.Release(ctx, election.Release{Lease: lease, Breadcrumb: election.Breadcrumb{Term: term, Controller: "ctl-a", Clean: true}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRenew(b *testing.B) {
	c := etcdtest.Start(b, 3)
	for name, h := range map[string]election.Hold{"hold": {}, "beat": {Beat: true}} {
		b.Run(name, func(b *testing.B) {
			s, err := Open(Config{Cluster: "renew-" + name, Endpoints: c.Endpoints()})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			h.Lease = hold(b, s, time.Minute)
			for b.Loop() {
				if _, err := s.Hold(b.Context(), h); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHandOver is from a release to a rival's claim, woken by its watch.
func BenchmarkHandOver(b *testing.B) {
	c := etcdtest.Start(b, 3)
	open := func() *Store {
		s, err := Open(Config{Cluster: "orders", Endpoints: c.Endpoints()})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = s.Close() })
		return s
	}
	holder, rival := open(), open()
	hints, next := rival.Watch(b.Context()), holder.Watch(b.Context())
	lease := hold(b, holder, time.Minute)
	for b.Loop() {
		snap, err := holder.Read(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		crumb := snap.Breadcrumb
		crumb.Clean = true
		if err := holder.Release(b.Context(), election.Release{Lease: lease, Breadcrumb: crumb}); err != nil {
			b.Fatal(err)
		}
		for snap, err = rival.Read(b.Context()); err != nil || !snap.Vacant(); snap, err = rival.Read(b.Context()) {
			<-hints
		}
		lease = hold(b, rival, time.Minute)
		holder, rival, hints, next = rival, holder, next, hints
	}
}
