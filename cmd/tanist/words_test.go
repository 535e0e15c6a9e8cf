package main

import (
	"strings"
	"testing"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                           "",
		"plain words":                "plain words",
		" two\n lines\t":             "two lines",
		"\x1b[31mred\x1b[0m":         "[31mred [0m",
		"bell\a, \u009bCSI":          "bell , CSI",
		"right\u202eleft":            "right left",
		"não → 日本":                   "não → 日本",
		string([]byte{'a', 0xff, 0}): "a\ufffd",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
	if got := short(strings.Repeat("é", 100)); got != strings.Repeat("é", 59)+"…" {
		t.Errorf("got %q", got)
	}
}
