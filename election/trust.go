package election

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// TrustFiles are the files that determine whom to trust over TLS, and our own identity. Empty
// fields mean the system's defaults.
type TrustFiles struct {
	CAFile     string
	CertFile   string // with KeyFile: the client's own certificate
	KeyFile    string
	ServerName string // the name that the server's certificate must have; empty: the address
}

// Trust is the content of the files. They are read again for every handshake, because certificates
// are renewed while we run. If a file is unusable, for example half written, its last content stays
// in force.
type Trust struct {
	files TrustFiles

	mu    sync.Mutex
	roots *x509.CertPool
	pair  *tls.Certificate
}

// OpenTrust reads the files for the first time, and returns an error if they are unusable.
func OpenTrust(files TrustFiles) (*Trust, error) {
	t := &Trust{files: files}
	if (files.CertFile == "") != (files.KeyFile == "") {
		return nil, errors.New("cert_file and key_file belong together: give both or none")
	}
	return t, t.read()
}

// Config returns the configuration for one handshake.
func (t *Trust) Config() *tls.Config {
	_ = t.read() // if it fails, the last content stays in force
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.files.ServerName, RootCAs: t.roots}
	if t.pair != nil {
		c.Certificates = []tls.Certificate{*t.pair}
	}
	return c
}

func (t *Trust) read() error {
	return errors.Join(t.readRoots(), t.readPair())
}

func (t *Trust) readRoots() error {
	if t.files.CAFile == "" {
		return nil
	}
	pem, err := os.ReadFile(t.files.CAFile)
	if err != nil {
		return fmt.Errorf("cannot read ca_file: %v", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("cannot use ca_file %s: there is no certificate in it", t.files.CAFile)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.roots = roots
	return nil
}

func (t *Trust) readPair() error {
	if t.files.CertFile == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(t.files.CertFile, t.files.KeyFile)
	if err != nil {
		return fmt.Errorf("cannot use cert_file and key_file: %v", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pair = &pair
	return nil
}

// Credential is a secret in a file that may change while we run. If the file is unreadable or
// empty, the last secret stays in force.
//
// While the old and the new secret overlap, both are tried: if the other side refuses the new one,
// the one that it accepted last follows.
type Credential struct {
	file string

	mu       sync.Mutex
	read     time.Time
	latest   string // as last read
	accepted string // last accepted by the other side
}

// credentialEvery is how often the file is read while nobody refuses its secret.
const credentialEvery = 5 * time.Second

// OpenCredential reads the file for the first time. If there is no file, the secret is fixed.
func OpenCredential(file, fixed string) (*Credential, error) {
	s := &Credential{file: file, latest: fixed}
	if file == "" {
		return s, nil
	}
	s.latest = ""
	if s.Words(true); s.latest == "" {
		_, err := os.ReadFile(file)
		if err == nil {
			err = fmt.Errorf("%s is empty", file)
		}
		return nil, err
	}
	return s, nil
}

// Words returns the secrets to present, in order. With anew, it reads the file at once.
func (s *Credential) Words(anew bool) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.file != "" && (anew || now.Sub(s.read) >= credentialEvery) {
		s.read = now
		if b, err := os.ReadFile(s.file); err == nil {
			s.latest = cmp.Or(strings.TrimRight(string(b), "\r\n"), s.latest)
		}
	}
	if s.accepted != "" && s.accepted != s.latest {
		return []string{s.latest, s.accepted}
	}
	return []string{s.latest}
}

// Accepted records that the other side accepted a secret.
func (s *Credential) Accepted(word string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted = word
}
