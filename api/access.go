package api

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// Role is what a client may do. Each role may do what the ones before it may.
type Role int

// The roles.
const (
	RoleNone     Role = iota // learns yes or no
	RoleViewer               // reads everything
	RoleOperator             // moves, pauses and restarts
	RoleAdmin                // also what cannot be taken back, or gives up a guarantee
)

var roleNames = []string{"none", "viewer", "operator", "admin"}

func (r Role) String() string { return roleNames[r] }

// ParseRole returns the role of a name, other than none.
func ParseRole(name string) (Role, error) {
	if i := slices.Index(roleNames, name); i > 0 {
		return Role(i), nil
	}
	return RoleNone, fmt.Errorf("%q is not one of %s", name, strings.Join(roleNames[1:], ", "))
}

// Grant gives a role to the clients that one of its other fields describes.
type Grant struct {
	Role Role
	// User and Group are of this host, and recognized at the Unix socket by the kernel's word.
	User, Group string
	// Tokens returns the bearer tokens; more than one while they are rotated. Name is what the record
	// of an operation calls their owner.
	Tokens func() ([]string, error)
	Name   string
	// Certificate is the common name or a DNS name of a client certificate that [Server.ListenTLS]
	// has verified.
	Certificate string
}

// Caller is the client of a request.
type Caller struct {
	Name string // empty: unknown
	Via  string // "unix socket", "token", "certificate"; empty: nothing proves who it is
	Role Role
	// Why is what would give it more, for the error.
	Why string
}

// caller recognizes the client of a request. Of several proofs the one of the highest role counts.
func (c *Config) caller(r *http.Request) Caller {
	best := Caller{Why: "give a token (Authorization: Bearer TOKEN) or a client certificate of listen.access, or use the socket of listen.admin"}
	take := func(found Caller) {
		if found.Role > best.Role || found.Role == best.Role && best.Via == "" {
			best = found
		} else if best.Via == "" {
			best.Why = found.Why
		}
	}
	if c.Open || local(r) || c.Secret.Proved(r.URL.Path, r.Header.Get(election.NonceHeader), r.Header.Get(election.ProofHeader)) {
		best.Role = RoleViewer
	}
	if p, ok := r.Context().Value(peerKey{}).(peer); ok {
		take(c.ofPeer(p))
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		take(c.ofCertificate(r.TLS.PeerCertificates[0]))
	}
	if token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); bearer {
		found := c.ofToken(token)
		if found.Role > RoleViewer && r.TLS == nil && !local(r) {
			found.Role, found.Why = RoleViewer, "a token that may change something is taken over TLS (listen.https) or on this host only"
		}
		take(found)
	}
	return best
}

// trusts reports whether a request may read more than yes or no.
func (c *Config) trusts(r *http.Request) bool { return c.caller(r).Role >= RoleViewer }

// local reports whether a request arrived at a Unix socket that only this process's user and group
// can use, or at a loopback address, which other hosts do not reach even if the server listens on all
// addresses.
func local(r *http.Request) bool {
	switch at := r.Context().Value(http.LocalAddrContextKey).(type) {
	case *net.UnixAddr:
		p, ok := r.Context().Value(peerKey{}).(peer)
		return !ok || p.ours()
	case *net.TCPAddr:
		return at.IP.IsLoopback()
	default:
		return false
	}
}

// ofToken returns the owner of a bearer token.
func (c *Config) ofToken(token string) Caller {
	found := Caller{Via: "token", Why: "the token is not one of listen.access"}
	for _, g := range c.tokens() {
		words, err := g.Tokens()
		if err != nil {
			c.Log.Error().Err(err).Msg("cannot read the secret of the REST interface")
			continue
		}
		for _, want := range words {
			same := subtle.ConstantTimeCompare([]byte(want), []byte(token)) == 1
			if same && election.Secret(want).Validate() == nil && g.Role > found.Role {
				found = Caller{Name: g.Name, Via: "token", Role: g.Role, Why: fmt.Sprintf("the token has the role %v", g.Role)}
			}
		}
	}
	return found
}

// tokens returns the grants to owners of tokens.
func (c *Config) tokens() []Grant {
	all := slices.DeleteFunc(slices.Clone(c.Grants), func(g Grant) bool { return g.Tokens == nil })
	if c.Token != nil {
		all = append(all, Grant{Role: RoleViewer, Name: "secret_file", Tokens: func() ([]string, error) {
			token, err := c.Token()
			return []string{token}, err
		}})
	}
	return all
}

// ofCertificate returns the owner of a verified client certificate.
func (c *Config) ofCertificate(cert *x509.Certificate) Caller {
	name := cert.Subject.CommonName
	found := Caller{Name: name, Via: "certificate", Why: fmt.Sprintf("the certificate of %q is not one of listen.access", name)}
	for _, g := range c.Grants {
		if g.Certificate != "" && (g.Certificate == name || slices.Contains(cert.DNSNames, g.Certificate)) && g.Role > found.Role {
			found = Caller{Name: g.Certificate, Via: "certificate", Role: g.Role, Why: fmt.Sprintf("the certificate of %q has the role %v", g.Certificate, g.Role)}
		}
	}
	return found
}

// peer is the process at the other end of a Unix socket, as the kernel recorded it when it connected.
// It is the address of that end.
type peer struct {
	net.Addr
	uid, gid int
}

type peerKey struct{}

// ours reports whether the process has the user or the group of this one.
func (p peer) ours() bool { return p.uid == os.Geteuid() || p.gid == os.Getegid() || p.uid == 0 }

// ofPeer returns who uses the Unix socket. root and our own user could do everything without it.
func (c *Config) ofPeer(p peer) Caller {
	name, groups := "uid "+strconv.Itoa(p.uid), []string{strconv.Itoa(p.gid)}
	if u, err := user.LookupId(strconv.Itoa(p.uid)); err == nil {
		name = u.Username
		if more, err := u.GroupIds(); err == nil {
			groups = append(groups, more...)
		}
	}
	found := Caller{Name: name, Via: "unix socket", Why: fmt.Sprintf("%s is not one of listen.access", name)}
	if p.uid == 0 || p.uid == os.Geteuid() {
		found.Role = RoleAdmin
		return found
	}
	if p.ours() {
		found.Role = RoleViewer
	}
	for _, g := range c.Grants {
		of := g.User != "" && (g.User == name || g.User == strconv.Itoa(p.uid))
		if g.Group != "" {
			id := g.Group
			if group, err := user.LookupGroup(g.Group); err == nil {
				id = group.Gid
			}
			of = slices.Contains(groups, id)
		}
		if of && g.Role > found.Role {
			found.Role, found.Why = g.Role, fmt.Sprintf("%s has the role %v", name, g.Role)
		}
	}
	return found
}

// peers is a listener of a Unix socket whose connections tell who is at the other end.
type peers struct{ *net.UnixListener }

// peerConn is such a connection.
type peerConn struct {
	net.Conn
	peer peer
}

// RemoteAddr returns a [peer].
func (c *peerConn) RemoteAddr() net.Addr { return c.peer }

// Accept implements [net.Listener].
func (l peers) Accept() (net.Conn, error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	p := peer{Addr: conn.RemoteAddr(), uid: -1, gid: -1} // nobody
	raw, err := conn.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				p.uid, p.gid = int(cred.Uid), int(cred.Gid)
			}
		})
	}
	return &peerConn{conn, p}, nil
}

// withPeer adds the peer of a connection to the context of its requests.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	if p, ok := conn.RemoteAddr().(peer); ok {
		return context.WithValue(ctx, peerKey{}, p)
	}
	return ctx
}

// serverTLS returns the TLS configuration of a listener. Certificates are read again for every
// handshake. Client certificates are optional; those that are sent must be of the authority.
func serverTLS(files election.TrustFiles) (*tls.Config, error) {
	trust, err := election.OpenTrust(files)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := trust.Config()
		if c.RootCAs != nil {
			c.ClientCAs, c.RootCAs, c.ClientAuth = c.RootCAs, nil, tls.VerifyClientCertIfGiven
		}
		return c, nil
	}}, nil
}

// guarded admits only requests that are trusted.
func (c *Config) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !c.trusts(r) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			Problem(w, http.StatusUnauthorized,
				"other hosts need the token of listen.secret_file for this (Authorization: Bearer TOKEN), unless listen.open is all")
			return
		}
		next.ServeHTTP(w, r)
	})
}
