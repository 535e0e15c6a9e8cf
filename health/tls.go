package health

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLSOptions configures a check's TLS. The zero value trusts the system's certificate authorities
// and expects the host that is connected to. Files are read for each run, so that a rotated one
// counts at once.
type TLSOptions struct {
	CAFile     string // certificate authorities in PEM, instead of the system's
	CertFile   string // our own certificate, for a program that asks for one
	KeyFile    string
	ServerName string // expected in the certificate, and sent (SNI); empty: the host
	Insecure   bool   // any certificate is accepted
}

// Config returns the configuration for a connection to host.
func (o TLSOptions) Config(host string) (*tls.Config, error) {
	c := &tls.Config{ServerName: o.ServerName, InsecureSkipVerify: o.Insecure, MinVersion: tls.VersionTLS12} //nolint:gosec // by the operator's choice
	if c.ServerName == "" {
		c.ServerName = host
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", o.CAFile)
		}
	}
	if o.CertFile != "" || o.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cannot use %s with %s: %v", o.CertFile, o.KeyFile, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Validate returns what is wrong with o, apart from the contents of files.
func (o TLSOptions) Validate() error {
	switch {
	case (o.CertFile == "") != (o.KeyFile == ""):
		return errors.New("cert_file and key_file belong together: give both or none")
	case o.Insecure && o.CAFile != "":
		return errors.New("insecure_skip_verify accepts any certificate, so ca_file has no effect: give one of them")
	}
	return nil
}
