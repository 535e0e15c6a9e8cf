package main

import "github.com/tanist/tanist/operate"

// clean is [operate.Clean].
func clean(s string) string { return operate.Clean(s) }

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
