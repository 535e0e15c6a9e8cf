package api

import (
	"crypto/subtle"
	"net"
	"net/http"
	"strings"

	"github.com/tanist/tanist/election"
)

// trusts reports whether a request may read more than yes or no: it comes from this host, or its
// sender has a secret, or everybody may.
func (c *Config) trusts(r *http.Request) bool {
	return c.Open || local(r) || c.Secret.Proved(r.URL.Path, r.Header.Get(election.NonceHeader), r.Header.Get(election.ProofHeader)) ||
		c.hasToken(r)
}

// local reports whether a request arrived at a Unix socket or a loopback address, which other hosts
// do not reach even if the server listens on all addresses.
func local(r *http.Request) bool {
	switch at := r.Context().Value(http.LocalAddrContextKey).(type) {
	case *net.UnixAddr:
		return true
	case *net.TCPAddr:
		return at.IP.IsLoopback()
	default:
		return false
	}
}

func (c *Config) hasToken(r *http.Request) bool {
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if c.Token == nil || !bearer {
		return false
	}
	want, err := c.Token()
	if err != nil {
		c.Log.Error().Err(err).Msg("cannot read the secret of the REST interface")
		return false
	}
	return election.Secret(want).Validate() == nil && subtle.ConstantTimeCompare([]byte(want), []byte(token)) == 1
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
