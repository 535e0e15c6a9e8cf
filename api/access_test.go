package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tanist/tanist/election"
)

// guardedServer returns a server that has something to hide.
func guardedServer(cfg Config) *Server {
	cfg.Answers = map[string]Answer{
		"/active": func() (bool, any) { return true, "private" }, "/passive": func() (bool, any) { return false, "private" },
	}
	cfg.Documents = map[string]Document{"/v1/cluster": func(context.Context) (any, error) { return "private", nil }}
	cfg.Streams = map[string]Stream{"/v1/events": func(context.Context) <-chan Event { return nil }}
	cfg.Private = map[string]Document{"/v1/output": func(context.Context) (any, error) { return "private", nil }}
	cfg.Metrics = []prometheus.Collector{prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "private"}, func() float64 { return 1 })}
	return New(cfg)
}

// TestWhatAProgramWritesIsNotOpen: listen.open lets everybody read what Tanist reports, and no more.
func TestWhatAProgramWritesIsNotOpen(t *testing.T) {
	s := guardedServer(Config{Open: true})
	other := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 11), Port: 8710}
	if status, body := get(s, other, "/v1/output", nil); status != http.StatusUnauthorized || strings.Contains(body, "private\"") {
		t.Errorf("the private document: %d %s", status, body)
	}
	if status, _ := get(s, other, "/v1/cluster", nil); status != http.StatusOK {
		t.Errorf("the open document: %d", status)
	}
}

// get asks a server as if the request had arrived at an address.
func get(s *Server, at net.Addr, path string, header http.Header) (int, string) {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, at))
	r.Header = header
	w := httptest.NewRecorder()
	s.http.Handler.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// TestOtherHostsReadOnlyYesOrNo: without a secret, other hosts learn from an answer only its
// status, and read no document and no metrics. This host reads everything.
func TestOtherHostsReadOnlyYesOrNo(t *testing.T) {
	const token = "0123456789abcdef"
	secret := election.Secret("fedcba9876543210")
	other := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 11), Port: 8710}
	bearer := func(s string) http.Header { return http.Header{"Authorization": {"Bearer " + s}} }
	proof := func(s election.Secret, path string) http.Header {
		return http.Header{election.NonceHeader: {"n1"}, election.ProofHeader: {s.Prove(path, "n1")}}
	}
	reads := func(s string, err error) func() (string, error) { return func() (string, error) { return s, err } }
	for name, c := range map[string]struct {
		cfg    Config
		at     net.Addr
		header http.Header
		reads  bool
	}{
		"this host":                             {at: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, reads: true},
		"this host, IPv6":                       {at: &net.TCPAddr{IP: net.IPv6loopback}, reads: true},
		"the Unix socket":                       {at: &net.UnixAddr{Name: "s", Net: "unix"}, reads: true},
		"another host":                          {at: other},
		"another host, a token that nobody set": {at: other, header: bearer("")},
		"another host, the token":               {cfg: Config{Token: reads(token, nil)}, at: other, header: bearer(token), reads: true},
		"another host, a wrong token":           {cfg: Config{Token: reads(token, nil)}, at: other, header: bearer(token + "0")},
		"another host, an empty file":           {cfg: Config{Token: reads("", nil)}, at: other, header: bearer("")},
		"another host, an unreadable file":      {cfg: Config{Token: reads("", errors.New("no"))}, at: other, header: bearer("")},
		"a sidecar of the cluster":              {cfg: Config{Secret: secret}, at: other, header: proof(secret, "/v1/cluster"), reads: true},
		"a sidecar of another cluster":          {cfg: Config{Secret: secret}, at: other, header: proof(election.Secret(token), "/v1/cluster")},
		"a proof for another document":          {cfg: Config{Secret: secret}, at: other, header: proof(secret, "/v1/status")},
		"a proof where there is no secret":      {at: other, header: proof(nil, "/v1/cluster")},
		"everybody may":                         {cfg: Config{Open: true}, at: other, reads: true},
		"an address that can't be told":         {at: nil},
	} {
		s := guardedServer(c.cfg)
		status, body := get(s, c.at, "/v1/cluster", c.header)
		if c.reads && status != http.StatusOK || !c.reads && (status != http.StatusUnauthorized || strings.Contains(body, "private")) {
			t.Errorf("%s: the document: %d %s", name, status, body)
		}
		if name != "everybody may" && c.header.Get(election.ProofHeader) == "" {
			status, body = get(s, c.at, "/v1/output", c.header)
			if c.reads != (status == http.StatusOK) || c.reads != strings.Contains(body, "private") {
				t.Errorf("%s: the private document: %d %s", name, status, body)
			}
		}
		if c.header.Get(election.ProofHeader) != "" {
			continue // it is for one path
		}
		status, body = get(s, c.at, "/metrics", c.header)
		if c.reads != strings.Contains(body, "private 1") || c.reads != (status == http.StatusOK) {
			t.Errorf("%s: the metrics: %d %s", name, status, body)
		}
		if status, _ = get(s, c.at, "/v1/events", c.header); c.reads != (status == http.StatusOK) {
			t.Errorf("%s: the events: %d", name, status)
		}
		for path, want := range map[string]int{"/active": http.StatusOK, "/passive": http.StatusServiceUnavailable} {
			status, body := get(s, c.at, path, c.header)
			if status != want || c.reads != strings.Contains(body, "private") {
				t.Errorf("%s: %s: %d %s", name, path, status, body)
			}
		}
	}
}
