package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// secrets are the files of the lab's passwords, tokens and certificates. What exists stays, since
// running containers have it mounted.
type secrets struct {
	dir  string
	errs []error
}

// writeSecrets makes the secrets that are missing.
func (c *containers) writeSecrets() error {
	s := &secrets{dir: filepath.Join(c.dir, "secrets")}
	// Every user of a container can read the files, but only the owner can enter the directory.
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the lab's secrets: %v", err)
	}
	superuser := s.text("postgres", password)
	s.text("superuser", func() string { return "postgres://postgres:" + superuser + "@postgres/lab?sslmode=disable" })
	for _, x := range []string{"a", "b"} {
		sidecar := s.text("sidecar_"+x, password)
		s.text("repository_"+x, func() string { return "postgres://sidecar_" + x + ":" + sidecar + "@postgres/lab?sslmode=disable" })
	}
	for _, name := range []string{"store_operator", "store_agents", "store_proxy"} {
		s.text(name, password)
	}
	management := s.text("consul_management", uuid)
	tokens := map[string]string{}
	for _, name := range []string{"host", "dns", "controller", "agent", "operator", "mesh", "mesh_clients"} {
		tokens[name] = s.text("consul_token_"+name, uuid)
	}
	own := fmt.Sprintf("agent = %q\n    dns = %q\n    config_file_service_registration = %[1]q", tokens["host"], tokens["dns"])
	s.text("consul_client", func() string { return fmt.Sprintf("acl {\n  tokens {\n    %s\n  }\n}", own) })
	s.text("consul_server", func() string {
		return fmt.Sprintf("acl {\n  tokens {\n    initial_management = %q\n    %s\n  }\n}", management, own)
	})
	s.certificates()
	return errors.Join(s.errs...)
}

// text returns the content of a secret's file, which it makes if it is missing.
func (s *secrets) text(name string, fresh func() string) string {
	if b, err := os.ReadFile(filepath.Join(s.dir, name)); err == nil && len(b) > 0 {
		return string(bytes.TrimSpace(b))
	}
	text := fresh()
	s.write(name, text+"\n")
	return text
}

func (s *secrets) write(name, text string) {
	path := filepath.Join(s.dir, name)
	err := os.WriteFile(path+".new", []byte(text), 0o600)
	if err == nil {
		err = os.Chmod(path+".new", 0o444) //nolint:gosec // see above
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	s.errs = append(s.errs, err)
}

func password() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// uuid returns a token for Consul.
func uuid() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// certificates makes an authority, a certificate that all Consul servers share, and one that all
// client agents share. They last for a year.
func (s *secrets) certificates() {
	if _, err := os.Stat(filepath.Join(s.dir, "consul_client_key")); err == nil {
		return
	}
	now := time.Now()
	template := func(name string) *x509.Certificate {
		serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100)) // never fails
		return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0)}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.errs = append(s.errs, err)
		return
	}
	ca := template("tanist lab")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	s.certificate("consul_ca", ca, ca, caKey, caKey)
	for _, one := range []struct {
		name  string
		hosts []string
	}{
		// Only a server's certificate has the name that makes Consul accept it as one.
		{"consul_server", []string{"server.dc1.consul", "localhost", "consul-1", "consul-2", "consul-3"}},
		{"consul_client", []string{"client.dc1.consul", "localhost"}},
	} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			s.errs = append(s.errs, err)
			return
		}
		cert := template(one.name)
		cert.DNSNames, cert.IPAddresses = one.hosts, []net.IP{net.IPv4(127, 0, 0, 1)}
		cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		s.certificate(one.name+"_cert", cert, ca, key, caKey)
		der, err := x509.MarshalECPrivateKey(key)
		s.errs = append(s.errs, err)
		s.write(one.name+"_key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
	}
}

func (s *secrets) certificate(name string, cert, by *x509.Certificate, key, byKey *ecdsa.PrivateKey) {
	der, err := x509.CreateCertificate(rand.Reader, cert, by, key.Public(), byKey)
	s.errs = append(s.errs, err)
	s.write(name, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}
