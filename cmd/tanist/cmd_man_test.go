package main

import (
	"slices"
	"testing"

	"github.com/tanist/tanist/cmd/tanist/exit"
)

// TestRoff: a text can't become a request of the page's language.
func TestRoff(t *testing.T) {
	if got, want := roff(".SH x\n'y\n--a\\b"), "\\&.SH x\n\\&'y\n\\-\\-a\\eb"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestExitCodesAreDocumented: the manual page names all of them.
func TestExitCodesAreDocumented(t *testing.T) {
	var all []int
	for _, c := range exit.Codes() {
		all = append(all, c.Code)
	}
	if want := []int{0, 1, 3, 64, 69, 70, 75, 77, 78, 107}; !slices.Equal(all, want) {
		t.Errorf("got %v, want %v", all, want)
	}
}
