package process

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/tanist/tanist/process/internal/kernel"
	"github.com/tanist/tanist/process/internal/wire"
)

// Identity tells one kept program from all others on a host.
type Identity struct{ Cluster, Controller string }

// String writes the identity so that no two are written alike: ("a", "b-c") is not ("a-b", "c").
func (i Identity) String() string { return escaped(i.Cluster) + "+" + escaped(i.Controller) }

// escaped leaves letters, digits, dots, dashes and underscores, none of which means anything in a
// mark.
func escaped(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// StateName returns the name of the directory that keeps the state of a controller. No two
// controllers have the same one: the dashes of the cluster's name are doubled, so that the single
// one after it ends it.
func StateName(cluster, controller string) string {
	return strings.ReplaceAll(cluster, "-", "--") + "-" + controller
}

// kin begins the marks of all trees of this program. The state directory is part of it: labs that
// call their clusters alike are not one.
func (c *Config) kin() string {
	if c.StateDir == "" {
		return ""
	}
	dir, err := filepath.Abs(c.StateDir)
	if err != nil {
		dir = c.StateDir
	}
	sum := sha256.Sum256([]byte(dir))
	return c.Identity.String() + "@" + hex.EncodeToString(sum[:4]) + "."
}

// mark returns the mark of a new tree.
func (c *Config) mark() string { return c.kin() + rand.Text()[:16] }

// KeptIn reports whether what runs according to the record in a state directory is that program for
// certain.
func KeptIn(dir string, who Identity) bool {
	st, err := wire.Recall(dir)
	if err != nil {
		return false
	}
	for _, pid := range kernel.Marked(wire.TreeMark, func(mark string) bool { return mark == st.Tree }) {
		is := func(want string) func(string) bool { return func(value string) bool { return value == want } }
		if kernel.HasMark(pid, "TANIST_CLUSTER", is(who.Cluster)) && kernel.HasMark(pid, "TANIST_NAME", is(who.Controller)) {
			return true
		}
	}
	return false
}
