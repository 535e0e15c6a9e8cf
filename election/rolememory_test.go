package election

import "testing"

// TestRoleMemory: what is remembered of the role key.
func TestRoleMemory(t *testing.T) {
	var m RoleMemory
	read := func(lease LeaseID, v Version) {
		m.Read([]Entry{{Key: TermKey, Version: 99}, {Key: ActiveKey, Lease: lease, Version: v}})
	}
	for _, c := range []struct {
		what string
		do   func()
		want Version // for lease "ours"
	}{
		{"nothing yet", func() {}, 0},
		{"another's", func() { read("theirs", 5) }, 0},
		{"handed to us", func() { read("ours", 7) }, 7},
		{"we wrote", func() { m.Wrote("ours", 9) }, 9},
		{"an answer that was overtaken", func() { read("ours", 7) }, 9},
		{"somebody with our lease wrote", func() { read("ours", 10) }, 10},
		{"a write with an unknown outcome", func() { m.Wrote("ours", 0) }, 0},
		{"looked since", func() { read("ours", 10) }, 10},
		{"bound to no lease", func() { read("", 11) }, 10},
		{"lost", func() { read("theirs", 12) }, 0},
	} {
		c.do()
		if got := m.Version("ours"); got != c.want {
			t.Errorf("%s: version %d, want %d", c.what, got, c.want)
		}
	}
}
