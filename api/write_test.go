package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// writing returns what serves one operation for operators, which answers with who calls.
func writing(grants ...Grant) Config {
	return Config{Log: zerolog.Nop(), Grants: grants, Writes: map[string]Write{
		"POST /v1/do": {Summary: "Do it", Role: RoleOperator, Body: func() any { return &struct{ What string }{} }, Do: func(_ *http.Request, from Caller, _ any) (Result, error) {
			return Result{Document: from.Via + " " + from.Name + " " + from.Role.String()}, nil
		}},
	}}
}

// runs runs a server until the test ends.
func runs(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		all.Wait()
	})
}

// TestTheKernelTellsWhoUsesTheSocket: our own user is an admin there, and what the kernel says of
// others decides what they may do.
func TestTheKernelTellsWhoUsesTheSocket(t *testing.T) {
	s, path := New(writing()), filepath.Join(t.TempDir(), "s")
	if err := s.ListenUnix(path); err != nil {
		t.Fatal(err)
	}
	runs(t, s)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if status, _, body := ask(t, client, "POST", "http://tanist/v1/do"); status != 200 || !strings.Contains(body, "unix socket "+me.Username+" admin") {
		t.Errorf("%d %s", status, body)
	}

	nobody := peer{uid: 65534, gid: 65534}
	group, err := user.LookupGroupId("65534")
	if err != nil {
		t.Skip("there is no group 65534 here")
	}
	for name, c := range map[string]struct {
		grants []Grant
		peer   peer
		want   Role
	}{
		"root":                   {nil, peer{uid: 0, gid: 0}, RoleAdmin},
		"our own user":           {nil, peer{uid: os.Geteuid(), gid: 1}, RoleAdmin},
		"our group":              {nil, peer{uid: 65533, gid: os.Getegid()}, RoleViewer},
		"a stranger":             {nil, nobody, RoleNone},
		"another user's grant":   {[]Grant{{Role: RoleAdmin, User: "root"}}, nobody, RoleNone},
		"a user's grant":         {[]Grant{{Role: RoleOperator, User: "nobody"}}, nobody, RoleOperator},
		"a user's grant, by id":  {[]Grant{{Role: RoleOperator, User: "65534"}}, nobody, RoleOperator},
		"a group's grant":        {[]Grant{{Role: RoleOperator, Group: group.Name}}, nobody, RoleOperator},
		"the highest of several": {[]Grant{{Role: RoleAdmin, Group: group.Name}, {Role: RoleViewer, User: "nobody"}}, nobody, RoleAdmin},
		"who cannot be told":     {[]Grant{{Role: RoleAdmin, User: "root"}}, peer{uid: -1, gid: -1}, RoleNone},
	} {
		cfg := writing(c.grants...)
		r := httptest.NewRequest(http.MethodPost, "/v1/do", http.NoBody)
		ctx := context.WithValue(r.Context(), http.LocalAddrContextKey, &net.UnixAddr{Name: "s", Net: "unix"})
		r = r.WithContext(context.WithValue(ctx, peerKey{}, c.peer))
		if got := cfg.caller(r); got.Role != c.want || got.Via != "unix socket" {
			t.Errorf("%s: %+v, want %v", name, got, c.want)
		}
		w := httptest.NewRecorder()
		New(cfg).ServeHTTP(w, r)
		if want := map[bool]int{true: 200, false: 403}[c.want >= RoleOperator]; w.Code != want {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

// TestGrantsToUsersOpenTheSocket: the kernel tells who they are, so everybody may connect.
func TestGrantsToUsersOpenTheSocket(t *testing.T) {
	for mode, grants := range map[os.FileMode][]Grant{
		0o660: {{Role: RoleAdmin, Certificate: "ana"}}, 0o666: {{Role: RoleOperator, User: strconv.Itoa(os.Geteuid())}},
	} {
		s, path := New(writing(grants...)), filepath.Join(t.TempDir(), "s")
		if err := s.ListenUnix(path); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%v, %v; want %v", info.Mode(), err, mode)
		}
		s.Close()
	}
}

// TestClientCertificatesAreChecked: over TLS a client with a certificate of the authority has the
// role of its name, one without has none, and renewed files take effect at once.
func TestClientCertificatesAreChecked(t *testing.T) {
	dir := t.TempDir()
	files := electiontest.Certificates(t, dir)
	s := New(writing(Grant{Role: RoleOperator, Certificate: "ana"}, Grant{Role: RoleAdmin, Certificate: "bob"}))
	at, err := s.ListenTLS("127.0.0.1:0", files)
	if err != nil {
		t.Fatal(err)
	}
	runs(t, s)
	url := "https://" + at.String() + "/v1/do"
	client := func(with election.TrustFiles, shown bool) *http.Client {
		pem, err := os.ReadFile(with.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		c := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		c.RootCAs.AppendCertsFromPEM(pem)
		if shown {
			pair, err := tls.LoadX509KeyPair(with.CertFile, with.KeyFile)
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{pair}
		}
		return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: c}}
	}
	old := client(files, true)
	if status, _, body := ask(t, old, "POST", url); status != 200 || !strings.Contains(body, "certificate ana operator") {
		t.Errorf("with a certificate: %d %s", status, body)
	}
	if status, _, body := ask(t, client(files, false), "POST", url); status != 401 {
		t.Errorf("without a certificate: %d %s", status, body)
	}
	renewed := electiontest.Certificates(t, dir) // the same files, of a new authority
	if status, _, body := ask(t, client(renewed, true), "POST", url); status != 200 {
		t.Errorf("after the files were renewed: %d %s", status, body)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := old.Do(req); err == nil {
		resp.Body.Close()
		t.Errorf("a certificate of an authority that was replaced: %d", resp.StatusCode)
	}
}

// TestATokenCountsOnlyWhereNobodyCanOverhearIt: over plain HTTP from another host, a token that could
// change something only reads.
func TestATokenCountsOnlyWhereNobodyCanOverhearIt(t *testing.T) {
	const token = "0123456789abcdef"
	cfg := writing(Grant{Role: RoleAdmin, Name: "ci", Tokens: func() ([]string, error) { return []string{"fedcba9876543210", token}, nil }})
	for name, c := range map[string]struct {
		at   net.IP
		tls  *tls.ConnectionState
		want Role
	}{
		"from another host":           {net.IPv4(10, 0, 0, 11), nil, RoleViewer},
		"from another host, over TLS": {net.IPv4(10, 0, 0, 11), &tls.ConnectionState{}, RoleAdmin},
		"from this host":              {net.IPv4(127, 0, 0, 1), nil, RoleAdmin},
	} {
		r := httptest.NewRequest(http.MethodPost, "/v1/do", http.NoBody)
		r.TLS = c.tls
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: c.at}))
		r.Header.Set("Authorization", "Bearer "+token)
		if got := cfg.caller(r); got.Role != c.want || got.Via != "token" || got.Name != "ci" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestOnlyJSONChangesSomething: a page in a browser can send forms and texts to any server, and no
// JSON.
func TestOnlyJSONChangesSomething(t *testing.T) {
	const token = "0123456789abcdef"
	s := New(writing(Grant{Role: RoleOperator, Name: "ci", Tokens: func() ([]string, error) { return []string{token}, nil }}))
	for _, c := range []struct {
		kind, body string
		want       int
	}{
		{"", "", 200},
		{"application/json", "", 200},
		{"application/json; charset=utf-8", `{"what":"x"}`, 200},
		{"text/plain", `{"what":"x"}`, 415},
		{"application/x-www-form-urlencoded", "", 415},
		{"", `{"what":"x"}`, 415},
		{"application/json", `{"what":1}`, 400},
		{"application/json", `{"other":1}`, 400},
		{"application/json", `{} {}`, 400},
		{"application/json", `{"what":"` + strings.Repeat("x", maxBody) + `"}`, 413},
	} {
		r := httptest.NewRequest(http.MethodPost, "/v1/do", strings.NewReader(c.body))
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))
		r.Header.Set("Authorization", "Bearer "+token)
		if c.kind != "" {
			r.Header.Set("Content-Type", c.kind)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%q %.30q: %d %s, want %d", c.kind, c.body, w.Code, w.Body, c.want)
		}
	}
}
