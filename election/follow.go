package election

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The rules by which every follower of the role key (agentwatch, a proxy, the command line) accepts
// a record: one for names, one for URLs and one for terms. `tanist config check` applies the same
// functions, so whatever it accepts is followed.

// CheckName returns an error for an invalid name of a cluster, a controller or an agent. A valid
// one has 1 to 63 letters, digits, dots, dashes and underscores, and begins and ends with a letter
// or digit. Names become keys, file names and host names.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("it is missing: give a name")
	case !nameRule.MatchString(name):
		return fmt.Errorf("%.80q is not a name: use 1 to 63 letters, digits, dots, dashes and underscores, beginning and ending with a letter or digit", name)
	}
	return nil
}

var (
	nameRule = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	hostRule = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?$`)
	pathRule = regexp.MustCompile(`^(/([A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})*)*$`)
)

// URL is a checked URL of a controller or of a sidecar's REST interface. Two spellings of one place
// are equal: scheme and host are in lower case, an IP address is in its shortest form, the port is
// explicit, and the path has no slashes at its end. The rest of the path is compared as written.
type URL struct {
	Scheme string // http or https
	Host   string // an IP address without brackets, or a DNS name
	Port   uint16
	Path   string // empty, or begins with a slash
}

// maxURL bounds a URL, because it goes into command lines, configuration files and logs.
const maxURL = 1024

// ParseURL checks a URL by type. It accepts scheme, host, port and a plain path, and nothing that a
// shell, a configuration file, HAProxy or a log could take for anything but an address.
func ParseURL(raw string) (URL, error) {
	bad := func(why string) (URL, error) { return URL{}, fmt.Errorf("%.100q %s", raw, why) }
	switch {
	case raw == "":
		return URL{}, errors.New("it is missing: give the URL, such as http://10.0.0.11:8080")
	case len(raw) > maxURL:
		return URL{}, fmt.Errorf("it has %d bytes: use at most %d", len(raw), maxURL)
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return bad("cannot be read: write it like http://10.0.0.11:8080")
	case u.User != nil: // not shown: it may contain a password
		return URL{}, errors.New("it has a user or password in it, and everybody can read it: remove them")
	case u.Scheme != "http" && u.Scheme != "https":
		return bad("begins with neither http:// nor https://")
	case strings.ContainsAny(raw, "?#"):
		return bad("has a query or a fragment: give scheme, host, port and path only")
	case strings.ContainsFunc(raw, func(r rune) bool { return !strings.ContainsRune(urlCharacters, r) }):
		return bad("has a character other than letters, digits and . _ ~ - % : / [ ]")
	case u.Opaque != "" || !pathRule.MatchString(u.EscapedPath()):
		return bad("has a path with more than letters, digits, slashes and . _ ~ - %")
	case strings.Contains(u.EscapedPath(), "//") || strings.Contains(u.Path+"/", "/../") || strings.Contains(u.Path+"/", "/./"):
		return bad("has a path with an empty part, . or ..: write it without")
	}
	a := URL{Scheme: u.Scheme, Path: strings.TrimRight(u.EscapedPath(), "/")}
	if a.Host, err = checkHost(u.Hostname()); err != nil {
		return bad(err.Error())
	}
	switch p := u.Port(); {
	case p != "":
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return bad("has no port from 1 to 65535")
		}
		a.Port = uint16(n)
	case strings.HasSuffix(u.Host, ":"):
		return bad("has a colon and no port")
	case a.Scheme == "https":
		a.Port = 443
	default:
		a.Port = 80
	}
	return a, nil
}

const urlCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~-%:/[]"

// checkHost returns the canonical form of a host.
func checkHost(host string) (string, error) {
	host = strings.ToLower(host)
	if a, err := netip.ParseAddr(host); err == nil {
		switch {
		case a.Zone() != "":
			return "", errors.New("has an IPv6 zone, which means something on one host only: use an address without one")
		case a.IsUnspecified() || a.IsMulticast():
			return "", fmt.Errorf("has the address %s, at which no controller can be reached", a)
		}
		return a.Unmap().String(), nil
	}
	last := strings.TrimSuffix(host, ".")
	last = last[strings.LastIndexByte(last, '.')+1:]
	switch {
	case host == "":
		return "", errors.New("has no host")
	case len(host) > 253 || !hostRule.MatchString(host):
		return "", errors.New("has no valid host")
	case strings.Trim(last, "0123456789") == "": // others parse it as an address, in several ways
		return "", errors.New("has a host that is neither an IP address nor a name")
	}
	return host, nil
}

// Address returns host:port, to dial.
func (u URL) Address() string { return net.JoinHostPort(u.Host, strconv.Itoa(int(u.Port))) }

// String returns the canonical form of u.
func (u URL) String() string {
	if u == (URL{}) {
		return ""
	}
	return u.Scheme + "://" + u.Address() + u.Path
}

// ParseControllers parses the configuration key controllers: the URLs that may ever be active. An
// error has the index.
func ParseControllers(list []string) ([]URL, error) {
	var urls []URL
	var errs []error
	seen := map[URL]bool{}
	for i, raw := range list {
		u, err := ParseURL(raw)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("controllers[%d]: %v", i, err))
		case seen[u]:
			errs = append(errs, fmt.Errorf("controllers[%d]: %q is listed twice", i, raw))
		}
		seen[u] = true
		urls = append(urls, u)
	}
	return urls, errors.Join(errs...)
}

const (
	// MaxTerm is the highest valid term. Terms grow by one per takeover, so a higher one is damaged
	// or forged. Every JSON reader represents numbers up to it exactly.
	MaxTerm Term = 1<<53 - 1
	// MaxJump is how far above the highest term seen a sidecar's response may be. For the store
	// there is no such limit.
	MaxJump Term = 1000
	// LowerFor is how long the store has to report terms below the highest seen, without
	// interruption, before they are accepted. The store's reports come in order and begin with a
	// linearizable read, so a lower term is not a late report. The wait is for a store that is
	// being restored, and may yet report a higher one.
	LowerFor = 30 * time.Second
)

// Target is a checked record of the role key. It is comparable.
type Target struct {
	Controller string
	Term       Term
	State      State
	URL        string // as published; empty only while the controller does not serve
	At         URL    // the parsed URL
	URLs       URLs   // checked
	API        URL    // the sidecar's REST interface; zero: none, or not usable
}

// Serving reports whether t is to be followed. Other records are only informative.
func (t Target) Serving() bool { return t.State == StateServing }

// A Verdict is the result of [Filter] for a record: the Target if Err is nil.
type Verdict struct {
	Target Target
	// Err is why the record must not be followed. If it is an [OldTermError], the record was true
	// once.
	Err error
	// Again, if not zero, is when to judge the same record again if the store has reported nothing
	// else by then.
	Again time.Time
	// Back: the store keeps reporting a term below the highest seen, which is accepted now. The
	// store was restored, or a term was forged.
	Back bool
}

// OldTermError is the refusal of a record whose term is below the highest seen.
type OldTermError struct {
	Term, Seen Term
	Controller string
}

// Error names both terms.
func (e *OldTermError) Error() string {
	return fmt.Sprintf("term %d (%.63s) is older than term %d, which has been seen", e.Term, e.Controller, e.Seen)
}

// Filter is the one rule for what may be followed: valid names and URLs, only the listed
// controllers, and terms that only grow. It is not safe for concurrent use.
type Filter struct {
	allowed map[URL]bool // nil: any
	seen    Term
	lower   time.Time // since when the store reports terms below seen; zero: it does not
}

// NewFilter returns a filter that passes only the given controllers, or any if there are none.
func NewFilter(controllers []URL) *Filter {
	f := &Filter{}
	for _, u := range controllers {
		if f.allowed == nil {
			f.allowed = map[URL]bool{}
		}
		f.allowed[u] = true
	}
	return f
}

// Seen returns the highest term seen.
func (f *Filter) Seen() Term { return f.seen }

// Remember treats a term that an earlier process saw as seen.
func (f *Filter) Remember(t Term) {
	if t <= MaxTerm {
		f.seen = max(f.seen, t)
	}
}

// CheckURL checks the URL of a controller: its form, and that it is one of the listed controllers.
func (f *Filter) CheckURL(raw string) (URL, error) {
	u, err := ParseURL(raw)
	if err == nil && f.allowed != nil && !f.allowed[u] {
		err = fmt.Errorf("%.100q is not one of controllers", raw)
	}
	return u, err
}

// Sighting judges a report of the store. A term below the highest seen is refused, unless the store
// keeps reporting lower ones for [LowerFor]. A sighting with an error, or of a vacancy, has no
// record to judge: Err is nil and Target is zero.
func (f *Filter) Sighting(s Sighting, now time.Time) Verdict {
	if s.Err != nil || s.Active == nil {
		f.lower = time.Time{} // an interruption restarts the wait
	}
	if s.Active == nil {
		return Verdict{}
	}
	t, err := f.check(s.Active)
	switch {
	case err != nil:
		return Verdict{Err: err}
	case t.Term >= f.seen:
		f.seen, f.lower = t.Term, time.Time{}
		return Verdict{Target: t}
	case s.Err != nil:
		return Verdict{Err: &OldTermError{t.Term, f.seen, t.Controller}}
	}
	if f.lower.IsZero() {
		f.lower = now
	}
	if again := f.lower.Add(LowerFor); again.After(now) {
		return Verdict{Err: &OldTermError{t.Term, f.seen, t.Controller}, Again: again}
	}
	f.seen, f.lower = t.Term, time.Time{}
	return Verdict{Target: t, Back: true}
}

// Answer judges a sidecar's response while the store is unreachable. The caller has authenticated
// it. A jump of more than [MaxJump] is refused all the same.
func (f *Filter) Answer(a *Active) Verdict {
	t, err := f.check(a)
	switch {
	case err != nil:
		return Verdict{Err: err}
	case t.Term < f.seen:
		return Verdict{Err: &OldTermError{t.Term, f.seen, t.Controller}}
	case f.seen > 0 && t.Term > f.seen+MaxJump:
		return Verdict{Err: fmt.Errorf("term %d is more than %d above term %d, which has been seen: only the store may report that", t.Term, MaxJump, f.seen)}
	}
	f.seen = t.Term
	return Verdict{Target: t}
}

// check parses and checks a record.
func (f *Filter) check(a *Active) (Target, error) {
	t := Target{Controller: a.Controller, Term: a.Term, State: a.State, URL: a.URL}
	if err := CheckName(a.Controller); err != nil {
		return t, fmt.Errorf("controller: %v", err)
	}
	if a.Term == 0 || a.Term > MaxTerm {
		return t, fmt.Errorf("the term %d is not between 1 and %d", a.Term, MaxTerm)
	}
	if !knownState(a.State) {
		return t, fmt.Errorf("the state %.60q does not exist", string(a.State))
	}
	if a.URL != "" || t.Serving() {
		var err error
		if t.At, err = f.CheckURL(a.URL); err != nil {
			return t, fmt.Errorf("url: %v", err)
		}
	}
	if _, err := a.URLs.Check(t.At); err != nil {
		return t, fmt.Errorf("urls: %v", err)
	}
	t.URLs = a.URLs
	if a.API != "" {
		var err error
		if t.API, err = ParseURL(a.API); err != nil {
			return t, fmt.Errorf("api: %v", err)
		}
	}
	return t, nil
}

func knownState(s State) bool {
	switch s {
	case StateStarting, StateServing, StateStopping, StateReady, StateUnfit, StateYielding, StatePaused, StateFailed:
		return true
	}
	return false
}
