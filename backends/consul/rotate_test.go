package consul

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/election/electiontest"
)

// TestTokenRotatedOnDisk: no request fails while the token changes, whether the file or Consul is
// changed first.
func TestTokenRotatedOnDisk(t *testing.T) {
	t.Parallel()
	c := locked(t, consultest.Options{})
	file := t.TempDir() + "/token"
	write := func(token string) {
		t.Helper()
		must(t, os.WriteFile(file, []byte(token), 0o600))
	}
	first := granted(t, c, "policy-controller.hcl", "orders")
	write(first + "\n")
	config := Config{Cluster: "orders", Address: c.Servers[0].URL(), TokenFile: file, Log: logger(t)}
	config.TLS.CAFile = c.CAFile
	s, lease, _ := holder(t, config, "ctl-a", 10*time.Minute)
	renew := func(when string) {
		t.Helper()
		if err := renewed(t.Context(), s, lease, true); err != nil {
			t.Errorf("renewal %s: %v", when, err)
		}
	}
	write("11111111-2222-3333-4444-555555555555")
	s.token.Words(true) // as after some seconds
	renew("with a token in the file that Consul does not know yet")
	write("")
	s.token.Words(true)
	renew("while the file is being written")
	second, err := c.Grant(t.Context(), "second", deployed(t, "policy-controller.hcl"))
	must(t, err)
	write(second)
	admin, err := api.NewClient(&api.Config{Address: c.Servers[0].URL(), Token: c.Token, TLSConfig: api.TLSConfig{CAFile: c.CAFile}})
	must(t, err)
	old, _, err := admin.ACL().TokenReadSelf(&api.QueryOptions{Token: first})
	must(t, err)
	_, err = admin.ACL().TokenDelete(old.AccessorID, nil)
	must(t, err)
	renew("right after the old token was deleted")
}

// TestCertificatesRotatedOnDisk: authority, certificate and key are all replaced on both sides.
func TestCertificatesRotatedOnDisk(t *testing.T) {
	dir := t.TempDir()
	files := electiontest.Certificates(t, dir)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close") // each request makes a handshake
		_, _ = w.Write([]byte(`"127.0.0.1:8300"`))
	}))
	server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		pair, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
		pem, _ := os.ReadFile(files.CAFile)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}, err
	}}
	server.StartTLS()
	defer server.Close()
	s, err := Open(Config{Cluster: "orders", Address: server.URL, TLS: files, Log: logger(t)})
	must(t, err)
	defer s.Close()
	for range 3 {
		if agent := s.Agents(t.Context())[0]; agent.Leader == "" {
			t.Errorf("%+v", agent)
		}
		electiontest.Certificates(t, dir)
	}
}
