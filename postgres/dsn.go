package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"github.com/jackc/pgx/v5/pgconn"
)

// login lists the settings of a connection string that decide the user.
var login = []string{"user", "password", "passfile"}

// settings lists what a connection string may set. Everything else is refused: pgx would send it to
// the server as a parameter and the server would quote it, though it may be the tail of a password
// that contains a space.
var settings = append([]string{
	"host", "port", "dbname", "database", "connect_timeout", "service", "servicefile", "target_session_attrs",
	"sslmode", "sslcert", "sslkey", "sslrootcert", "sslpassword", "sslsni", "sslnegotiation", "min_protocol_version", "max_protocol_version",
	"krbspn", "krbsrvname", "channel_binding", "require_auth", "application_name", "fallback_application_name", "client_encoding", "options",
	"search_path", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout", "timezone", "datestyle",
	"default_transaction_read_only", "default_transaction_isolation", "default_query_exec_mode",
	"tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout",
}, login...)

// CheckDSN checks the form of a connection string more strictly than libpq and pgx do: they take
// what they misread for a host name, and host names appear in messages. The error quotes no part of
// the string.
func CheckDSN(dsn string) error {
	bad := func(why string) error { return errors.New("cannot read the connection string: " + why) }
	dsn = strings.TrimSpace(dsn)
	rest, isURL := strings.CutPrefix(dsn, "postgres://")
	if !isURL {
		rest, isURL = strings.CutPrefix(dsn, "postgresql://")
	}
	hosts := func(list string) error {
		for host := range strings.SplitSeq(list, ",") {
			if host != "" && !hostName(host) {
				return bad("a host is not a name, an address or the directory of a socket")
			}
		}
		return nil
	}
	if !isURL {
		var wrong error
		err := eachSetting(dsn, func(key, text string) {
			if strings.EqualFold(key, "host") && wrong == nil {
				wrong = hosts(strings.Trim(text, "'"))
			}
		})
		return errors.Join(err, wrong)
	}
	before, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(before, "/")
	switch {
	case strings.Count(authority, "@") > 1, strings.Contains(path, "@"), strings.Contains(query, "@"):
		return bad("it has more than one @, or one after the first / or ?: write an @ in a user or password as %40, a / as %2F and a ? as %3F")
	case strings.Contains(path, "/"), strings.Contains(dsn, "#"), strings.ContainsAny(dsn, " \t\r\n"):
		return bad("it has a blank, a # or a second /: write them in a user, password or database as %20, %23 and %2F")
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return bad("it is not a URL")
	}
	for host := range strings.SplitSeq(u.Host, ",") {
		if name, port, err := net.SplitHostPort(host); err == nil {
			if _, err := strconv.ParseUint(port, 10, 16); err != nil {
				return bad("a port is not a number; write a : or @ in a password as %3A or %40")
			}
			host = name
		}
		if host != "" && !hostName(strings.Trim(host, "[]")) {
			return bad("a host is not a name or an address; write an @ or : in a password as %40 or %3A")
		}
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("what follows the ? can't be read")
	}
	for key := range values {
		if !slices.Contains(settings, strings.ToLower(key)) {
			return bad("a setting after the ? is not known; put settings of the server into options=-c...")
		}
		if strings.EqualFold(key, "host") {
			if err := hosts(values.Get(key)); err != nil {
				return err
			}
		}
	}
	return nil
}

// eachSetting iterates over a connection string of keywords and values, with libpq's grammar.
func eachSetting(dsn string, each func(key, text string)) error {
	bad := func(why string) error { return errors.New("cannot read the connection string: " + why) }
	for rest := strings.TrimSpace(dsn); rest != ""; rest = strings.TrimSpace(rest) {
		key, after, ok := strings.Cut(rest, "=")
		if !ok {
			return bad("a setting has no value; put a value with blanks between single quotes")
		}
		key, after = strings.TrimSpace(key), strings.TrimLeft(after, " \t\r\n")
		n, err := valueEnd(after)
		if err != nil {
			return err
		}
		if !slices.Contains(settings, strings.ToLower(key)) {
			return bad("a setting is not known; put a value with blanks between single quotes, and settings of the server into options='-c ...'")
		}
		each(key, after[:n])
		rest = after[n:]
	}
	return nil
}

// WithoutLogin returns the connection string without the settings that decide the user, for a gate.
// The error does not quote the string. It does not read a service file that the string refers to.
func WithoutLogin(dsn string) (string, error) { return without(dsn, login) }

// HasPassword reports whether a connection string holds a password, or can't be read.
func HasPassword(dsn string) bool {
	if strings.TrimSpace(dsn) == "" {
		return false
	}
	if u, err := url.Parse(dsn); err == nil && u.User != nil {
		if _, has := u.User.Password(); has {
			return true
		}
	}
	with, err := without(dsn, nil)
	if err != nil {
		return true
	}
	stripped, err := without(dsn, []string{"password", "sslpassword"})
	return err != nil || with != stripped
}

// without returns the connection string without some settings. If one of them is the user, a URL also
// loses the login in its authority.
func without(dsn string, remove []string) (string, error) {
	if err := CheckDSN(dsn); err != nil {
		return "", err
	}
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		u, err := url.Parse(dsn)
		if err != nil {
			return "", errors.New("cannot read the connection string: it is not a URL")
		}
		if slices.Contains(remove, "user") {
			u.User = nil
		}
		query := u.Query()
		for _, key := range remove {
			query.Del(key)
		}
		u.RawQuery = query.Encode()
		return u.String(), nil
	}
	var kept []string
	err := eachSetting(dsn, func(key, text string) {
		if !slices.Contains(remove, key) {
			kept = append(kept, key+"="+text)
		}
	})
	return strings.Join(kept, " "), err
}

// valueEnd returns the end of the value that s begins with: a space or the closing quote.
func valueEnd(s string) (int, error) {
	quoted := strings.HasPrefix(s, "'")
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case quoted && i > 0 && s[i] == '\'':
			return i + 1, nil
		case !quoted && strings.IndexByte(" \t\r\n", s[i]) >= 0:
			return i, nil
		}
	}
	if quoted {
		return 0, errors.New("cannot read the connection string: a quote is not closed")
	}
	return len(s), nil
}

var (
	label = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)
	dir   = regexp.MustCompile(`^/[A-Za-z0-9_./-]*$`)
)

// hostName reports whether s can be a host name, an address, or the directory of a socket.
func hostName(s string) bool {
	if net.ParseIP(s) != nil || dir.MatchString(s) {
		return true
	}
	if len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if !label.MatchString(part) {
			return false
		}
	}
	return true
}

// Unquoted returns the text of an error from pgx without the parts between backticks. There pgx
// quotes the connection string, and it fails to mask the password in some strings that it can't
// parse.
func Unquoted(err error) string {
	text := err.Error()
	if first, last := strings.Index(text, "`"), strings.LastIndex(text, "`"); first < last {
		text = text[:first] + "it" + text[last+1:]
	}
	return text
}

// unreadable is the error of a string that pgx can't parse. The error of pgx quotes the string and
// fails to mask the password in some of them.
func unreadable(err error) error {
	var parse *pgconn.ParseConfigError
	if !errors.As(err, &parse) {
		return errors.New("cannot read the connection string")
	}
	why := "a setting has a value that can't be used"
	inner := errors.Unwrap(parse)
	if inner == nil {
		return errors.New("cannot read the connection string: " + why)
	}
	// Files that the string names are the usual cause. Their errors name the file, which is not a
	// secret.
	if path, ok := errors.AsType[*os.PathError](inner); ok {
		return fmt.Errorf("cannot read the connection string: %s %s: %v", path.Op, path.Path, path.Err)
	}
	for _, key := range settings {
		if !slices.Contains(login, key) && slices.Contains(strings.FieldsFunc(inner.Error(), func(r rune) bool { return r != '_' && !unicode.IsLetter(r) }), key) {
			why = "the value of " + key + " can't be used"
		}
	}
	return fmt.Errorf("cannot read the connection string: %s", why)
}

// unconnected returns the error of a failed connection: the hosts that were tried, and the reason.
// From the connection string it quotes only what looks like a host name. The server's answer is
// reported by its code, because its text quotes users, databases and parameters.
func unconnected(err error, cfg *pgconn.Config) error {
	var hosts []string
	add := func(host string, port uint16) {
		text := "(not a host name)"
		if hostName(host) {
			text = net.JoinHostPort(host, strconv.Itoa(int(port)))
			if strings.HasPrefix(host, "/") {
				text = host
			}
		}
		if !slices.Contains(hosts, text) {
			hosts = append(hosts, text)
		}
	}
	add(cfg.Host, cfg.Port)
	for _, f := range cfg.Fallbacks {
		add(f.Host, f.Port)
	}
	return &connectError{where: strings.Join(hosts, ", "), err: err}
}

// connectError is a failed connection.
type connectError struct {
	where string
	err   error
}

func (e *connectError) Error() string {
	return fmt.Sprintf("cannot connect to %s: %s", e.where, reason(e.err))
}

// Unwrap returns the library's error, for errors.As only: its text quotes the connection string.
func (e *connectError) Unwrap() error { return e.err }

// reason explains a failed connection without quoting the connection string.
func reason(err error) string {
	var pe *pgconn.PgError
	var dns *net.DNSError
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case errors.As(err, &pe):
		text := map[string]string{
			"28P01": "the server refused the password of the login",
			"28000": "the server refused the login",
			"3D000": "the database does not exist",
			"53300": "the server has no free connection slots",
			"57P03": "the server is starting, stopping or recovering",
			"57P01": "the server is shutting down",
			"08P01": "the other side does not take the settings of a sidecar's connection; it may be a connection pooler",
		}[pe.Code]
		if text == "" {
			text = "the server refused the connection"
		}
		return text + " (SQLSTATE " + pe.Code + ")"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return "no such host"
		}
		return "the host's name can't be looked up"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case strings.Contains(err.Error(), "tls:"), strings.Contains(err.Error(), "x509:"):
		return tlsReason(err)
	case strings.Contains(err.Error(), "server refused TLS"):
		return "the server does not speak TLS"
	case strings.Contains(err.Error(), "validation failed"), strings.Contains(err.Error(), "ValidateConnect failed"):
		return "the server is not what target_session_attrs asks for"
	}
	return "the connection was closed"
}

// tlsReason returns the part of an error that crypto/tls or crypto/x509 wrote.
func tlsReason(err error) string {
	text := err.Error()
	for _, mark := range []string{"x509: ", "tls: "} {
		if i := strings.LastIndex(text, mark); i >= 0 {
			return strings.TrimRight(text[i:], ")")
		}
	}
	return "TLS failed"
}
