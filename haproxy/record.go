package haproxy

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/tanist/tanist/election"
)

// endpoint is a checked URL, as far as a proxy needs it. Comparable: two spellings of one place are equal.
type endpoint struct {
	scheme string
	host   string // an IP address without brackets, or a DNS name in lower case
	port   uint16
}

var (
	hostRE = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?$`)
	pathRE = regexp.MustCompile(`^[A-Za-z0-9._~/%-]*$`)
)

// nowhere is the address of a slot that was never used: reserved for documentation, never routed, and in maintenance
// besides.
var nowhere = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 1)

// parseEndpoint checks a URL by type. It accepts so little that nothing it accepts can mean anything to HAProxy, to a
// shell or to a log but an address.
func parseEndpoint(raw string) (endpoint, error) {
	if len(raw) > 2048 {
		return endpoint{}, fmt.Errorf("the URL has %d bytes; at most 2048", len(raw))
	}
	for i := range len(raw) {
		if raw[i] <= ' ' || raw[i] >= 0x7f {
			return endpoint{}, fmt.Errorf("the URL %.100q has a character that no URL has", raw)
		}
	}
	u, err := url.Parse(raw)
	if err != nil {
		return endpoint{}, fmt.Errorf("%.100q is not a URL", raw)
	}
	var port uint16
	switch u.Scheme {
	case "http":
		port = 80
	case "https":
		port = 443
	case "tcp":
	default:
		return endpoint{}, fmt.Errorf("the URL %.100q is none of http, https, tcp", raw)
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" || !pathRE.MatchString(u.EscapedPath()) {
		return endpoint{}, fmt.Errorf("the URL %.100q has more than scheme, host, port and a plain path", raw)
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return endpoint{}, fmt.Errorf("the URL %.100q has no valid port", raw)
		}
		port = uint16(n)
	}
	if port == 0 {
		return endpoint{}, fmt.Errorf("the URL %.100q has no port", raw)
	}
	host := strings.ToLower(u.Hostname())
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return endpoint{}, fmt.Errorf("the URL %.100q has an address that nobody can be reached at", raw)
		}
		host = a.Unmap().String()
	} else if len(host) > 253 || !hostRE.MatchString(host) {
		return endpoint{}, fmt.Errorf("the URL %.100q has no valid host", raw)
	}
	return endpoint{u.Scheme, host, port}, nil
}

// target is a record of the role key after all checks. Comparable.
type target struct {
	controller string
	term       election.Term
	state      election.State
	url        string
	at         endpoint
	api        endpoint // zero: the record names no REST interface that can be used
}

var states = map[election.State]bool{
	election.StateStarting: true, election.StateServing: true, election.StateStopping: true, election.StateFailed: true,
	election.StateReady: true, election.StateUnfit: true, election.StateYielding: true, election.StatePaused: true,
}

// checkRecord turns what the store says into a target, or says why it is not to be followed.
func checkRecord(a election.Active, cl Cluster, whole Config) (target, error) {
	if !nameRE.MatchString(a.Controller) {
		return target{}, fmt.Errorf("the name %.60q (%d bytes) is not a controller's name", a.Controller, len(a.Controller))
	}
	if a.Term == 0 {
		return target{}, errors.New("there is no term")
	}
	if !states[a.State] {
		return target{}, fmt.Errorf("the state %.60q is none that there is", string(a.State))
	}
	at, err := parseEndpoint(a.URL)
	if err != nil {
		return target{}, err
	}
	if len(cl.Controllers) > 0 && !allowed(cl.Controllers, at) {
		return target{}, fmt.Errorf("the URL %.100q is not among controllers", a.URL)
	}
	if cl.tlsMismatch(at, whole) {
		return target{}, fmt.Errorf("the URL %.100q is https, which mode http of the built-in template can't carry; use mode tcp", a.URL)
	}
	t := target{controller: a.Controller, term: a.Term, state: a.State, url: a.URL, at: at}
	if a.API != "" {
		if t.api, err = parseEndpoint(a.API); err != nil {
			return target{}, fmt.Errorf("api: %v", err)
		}
	}
	return t, nil
}

func allowed(list []string, at endpoint) bool {
	for _, u := range list {
		if e, err := parseEndpoint(u); err == nil && e == at {
			return true
		}
	}
	return false
}
