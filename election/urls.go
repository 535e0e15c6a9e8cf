package election

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// URLs are the named URLs of a controller with several ports. It is the JSON object of a record, as
// one text, so that a record stays comparable; empty: none. What comes from the store is read by
// [URLs.Check] and used only after that.
type URLs string

// maxURLs bounds the number of named URLs, because a record goes to every follower.
const maxURLs = 16

var urlNameRule = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

// NewURLs returns the named URLs next to main, the controller's URL. Each has the host of main: they
// are other ports of the same program, so whatever restricts the followers of main restricts those
// of the others.
func NewURLs(main URL, named map[string]string) (URLs, error) {
	if len(named) == 0 {
		return "", nil
	}
	u := URLs(mustJSON(named))
	_, err := u.Check(main)
	return u, err
}

// Check returns the checked URLs by name. An error begins with the name.
func (u URLs) Check(main URL) (map[string]URL, error) {
	if u == "" {
		return nil, nil
	}
	var named map[string]string
	if err := json.Unmarshal([]byte(u), &named); err != nil {
		return nil, errors.New("it is not a map of names and URLs")
	}
	if len(named) > maxURLs {
		return nil, fmt.Errorf("it has %d URLs: at most %d are possible", len(named), maxURLs)
	}
	checked := map[string]URL{}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		if !urlNameRule.MatchString(name) {
			return nil, fmt.Errorf("%.80q is not a name: use 1 to 32 lower-case letters, digits and underscores, beginning with a letter", name)
		}
		at, err := ParseURL(named[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %v", name, err)
		}
		if at.Host != main.Host {
			return nil, fmt.Errorf("%s: the host %s is not %s, that of the controller's URL", name, at.Host, main.Host)
		}
		checked[name] = at
	}
	return checked, nil
}

// MarshalJSON implements [json.Marshaler].
func (u URLs) MarshalJSON() ([]byte, error) {
	if u == "" {
		return []byte("null"), nil
	}
	return []byte(u), nil
}

// UnmarshalJSON implements [json.Unmarshaler]. It accepts every value: an invalid one must not make
// the record unreadable, only unfit to be followed.
func (u *URLs) UnmarshalJSON(b []byte) error {
	var text bytes.Buffer
	if err := json.Compact(&text, b); err != nil {
		return err
	}
	var escaped bytes.Buffer // as the encoding of a record writes it, so that both are the same text
	json.HTMLEscape(&escaped, text.Bytes())
	*u = URLs(escaped.String())
	if *u == "null" || *u == "{}" {
		*u = ""
	}
	return nil
}
