package agentwatch

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tanist/tanist/election"
)

// The sources of a [Target].
const (
	viaStore   = "store"
	viaSidecar = "sidecar"
	viaMemory  = "state file"
	viaProbe   = "probe"
)

// Target is a controller to be pointed at.
type Target struct {
	Controller string        `json:"controller"`
	URL        string        `json:"url"`
	Term       election.Term `json:"term"` // zero: not known (found by a probe)
	Via        string        `json:"via"`  // store, sidecar, state file or probe
	Seen       time.Time     `json:"seen"` // when it was first learned of
}

// differs reports whether an agent that is pointed at t has to be pointed anew for next. That a term has become
// known is no change.
func (t Target) differs(next Target) bool {
	return t.URL != next.URL || (t.Term != 0 && t.Term != next.Term)
}

// address is what follows from a URL of a controller.
type address struct {
	scheme, host, port string
}

func (a address) dial() string { return net.JoinHostPort(a.host, a.port) }

// parseURL checks a URL that came from elsewhere. Only what RFC 3986 calls unreserved, and the few delimiters that URLs of
// programs need, are let through: the URL ends up in other programs' command lines and configuration files.
func parseURL(raw string) (address, error) {
	if len(raw) > 1024 {
		return address{}, errors.New("longer than 1024 bytes")
	}
	for _, c := range []byte(raw) {
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~:/?#[]@%=&+,", c) >= 0
		if !ok {
			return address{}, fmt.Errorf("has the character %q", c)
		}
	}
	u, err := url.Parse(raw)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return address{}, err
	}
	a := address{scheme: u.Scheme, host: strings.ToLower(u.Hostname()), port: u.Port()}
	switch {
	case u.User != nil:
		return address{}, errors.New("has a user name")
	case a.host == "":
		return address{}, errors.New("has no host")
	case a.scheme != "http" && a.scheme != "https":
		return address{}, errors.New("begins with neither http:// nor https://")
	case a.port == "" && a.scheme == "http":
		a.port = "80"
	case a.port == "":
		a.port = "443"
	}
	if n, err := strconv.ParseUint(a.port, 10, 16); err != nil || n == 0 {
		return address{}, fmt.Errorf("has no port from 1 to 65535")
	}
	return a, nil
}

// sameURL is the form in which URLs are compared: default port spelled out, host in lower case, no slash at the end.
func sameURL(raw string) string {
	a, err := parseURL(raw)
	if err != nil {
		return raw
	}
	u, _ := url.Parse(raw)
	rest := strings.TrimRight(u.EscapedPath(), "/")
	if u.RawQuery != "" {
		rest += "?" + u.RawQuery
	}
	return a.scheme + "://" + a.dial() + rest
}

func validName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._", c) >= 0) {
			return false
		}
	}
	return true
}
