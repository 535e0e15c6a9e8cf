package postgres

import (
	"errors"
	"net/url"
	"slices"
	"strings"
)

// login are the settings of a connection string that say who logs in.
var login = []string{"user", "password", "passfile"}

// WithoutLogin returns a connection string without the settings that say who logs in, for a [Gate]. The error does not quote the
// string. A service file that the string refers to is not looked into.
func WithoutLogin(dsn string) (string, error) {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		u, err := url.Parse(dsn)
		if err != nil {
			return "", errors.New("cannot read the repository's connection string: it is no URL")
		}
		u.User = nil
		query := u.Query()
		for _, key := range login {
			query.Del(key)
		}
		u.RawQuery = query.Encode()
		return u.String(), nil
	}
	var kept []string
	for rest := strings.TrimSpace(dsn); rest != ""; rest = strings.TrimSpace(rest) {
		key, after, ok := strings.Cut(rest, "=")
		if !ok {
			return "", errors.New("cannot read the repository's connection string: a setting has no value")
		}
		key, after = strings.TrimSpace(key), strings.TrimLeft(after, " \t\r\n")
		n, err := valueEnd(after)
		if err != nil {
			return "", err
		}
		if !slices.Contains(login, key) {
			kept = append(kept, key+"="+after[:n])
		}
		rest = after[n:]
	}
	return strings.Join(kept, " "), nil
}

// valueEnd returns where the value ends that s begins with: at a space, or at the closing quote.
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
		return 0, errors.New("cannot read the repository's connection string: a quote is not closed")
	}
	return len(s), nil
}
