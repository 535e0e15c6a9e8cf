package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// TestEveryCommandHasAPage: `tanist man --dir` writes one page per command, subcommands included.
func TestEveryCommandHasAPage(t *testing.T) {
	dir := t.TempDir()
	root := newRoot()
	root.SetArgs([]string{"man", "--dir", dir})
	if err := execute(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tanist", "tanist-list", "tanist-repository", "tanist-repository-init"} {
		page, err := os.ReadFile(filepath.Join(dir, name+".1"))
		if err != nil {
			t.Error(err)
			continue
		}
		if head := ".TH " + roff(strings.ToUpper(name)) + " 1"; !strings.HasPrefix(string(page), head) {
			t.Errorf("%s begins with %.40q, want %q", name, page, head)
		}
	}
	root.SetArgs([]string{"man", "--dir", filepath.Join(dir, "missing")})
	if err := execute(t.Context(), root); err == nil {
		t.Error("a page was written into a directory that does not exist")
	}
}
