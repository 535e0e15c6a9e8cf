package main

import (
	"strings"
	"unicode"
)

// clean makes a text from the store safe for one line on a terminal: it replaces what could move
// the cursor or break a table with a space. Write access to the store must not give control of the
// operator's screen.
func clean(s string) string {
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "\ufffd"), func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
	}), " ")
}

// short is clean, truncated to the width of a column.
func short(s string) string {
	s = clean(s)
	if r := []rune(s); len(r) > 60 {
		return string(r[:59]) + "…"
	}
	return s
}

// because adds a reason to a sentence, if there is one.
func because(reason string) string {
	if reason = clean(reason); reason != "" {
		return ": " + reason
	}
	return ""
}
