package config

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"strings"

	"github.com/tanist/tanist/election"
)

// checkAccess checks who may use the REST interface of a sidecar, and over what.
func (d *decoder) checkAccess(l Listen) {
	d.address("listen.https", l.HTTPS)
	if !d.away {
		d.tls("listen.tls", l.TLS)
	}
	switch {
	case l.HTTPS != "" && l.TLS.CertFile == "":
		d.wrong("listen.https", "it needs a certificate: set listen.tls.cert_file and key_file")
	case l.HTTPS == "" && l.TLS != (TLS{}):
		d.wrong("listen.tls", "it is set, and listen.https is not")
	case l.TLS.ServerName != "":
		d.wrong("listen.tls.server_name", "it is of clients: clients check the names of the certificate")
	}
	for i, a := range l.Access {
		d.checkGrant(fmt.Sprintf("listen.access[%d]", i), a, l)
	}
}

func (d *decoder) checkGrant(path string, a Access, l Listen) {
	kinds := 0
	for _, set := range []string{a.User, a.Group, a.TokenFile, a.Certificate} {
		if set != "" {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		d.wrong(path, "give exactly one of user, group, token_file, certificate")
	case (a.User != "" || a.Group != "") && l.Admin == "":
		d.wrong(path, "users and groups are recognized at a Unix socket: set listen.admin")
	case a.Certificate != "" && (l.HTTPS == "" || l.TLS.CAFile == ""):
		d.wrong(path+".certificate", "client certificates are checked at listen.https, with the authority of listen.tls.ca_file: set both")
	case a.TokenFile != "" && a.Role != "viewer" && l.HTTPS == "" && l.Admin == "" && !loopbackAddress(l.HTTP):
		d.wrong(path+".token_file", "over listen.http %s the token would cross the network in clear: set listen.https", l.HTTP)
	case a.TokenFile == "" && a.Name != "":
		d.wrong(path+".name", "it is of tokens: users, groups and certificates have names")
	}
	d.user(path+".user", a.User)
	d.group(path+".group", a.Group)
	if a.TokenFile == "" || d.away {
		return
	}
	tokens, err := Tokens(a.TokenFile)
	if err != nil {
		d.wrong(path+".token_file", "%v", err)
	}
	for _, token := range tokens {
		if err := election.Secret(token).Validate(); err != nil {
			d.wrong(path+".token_file", "%v", err)
		}
	}
}

func (d *decoder) group(path, name string) {
	if name == "" || d.away {
		return
	}
	if _, err := user.LookupGroup(name); err != nil {
		if _, err := user.LookupGroupId(name); err != nil {
			d.wrong(path, "there is no group %q on this host", name)
		}
	}
}

// Tokens returns the tokens in a file, one a line, so that an old and a new one can be valid at the
// same time.
func Tokens(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	tokens := strings.Fields(string(text))
	if len(tokens) == 0 {
		return nil, fmt.Errorf("%s is empty", file)
	}
	return tokens, nil
}

func loopbackAddress(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && loopback(host)
}
