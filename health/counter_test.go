package health

import "testing"

func TestCounter(t *testing.T) {
	// answers: + well, - not. verdicts: one letter per answer, u(nknown) U(p) D(own).
	for _, tc := range []struct {
		name              string
		rise, fall        int
		answers, verdicts string
	}{
		{"defaults, first success", 1, 3, "+", "U"},
		{"defaults, down at the third failure in a row", 1, 3, "+---", "UUUD"},
		{"a success in between restarts the count", 1, 3, "+--+--+---", "UUUUUUUUUD"},
		{"up again at once", 1, 3, "---+", "uuDU"},
		{"never well: no verdict before fall", 2, 3, "--", "uu"},
		{"flapping from the start settles nothing", 2, 2, "+-+-+-", "uuuuuu"},
		{"rise 3", 3, 1, "+++-+++", "uuUDDDU"},
		{"a failure restarts the count of rise", 3, 2, "+++--++-+++", "uuUUDDDDDDU"},
		{"one of each", 1, 1, "+-+-", "UDUD"},
		{"fall does not lose count beyond its threshold", 1, 2, "-----+", "uDDDDU"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := counter{rise: tc.rise, fall: tc.fall}
			got, before := "", Unknown
			for _, a := range tc.answers {
				changed := c.observe(a == '+')
				if changed != (c.verdict != before) {
					t.Errorf("changed = %v from %v to %v", changed, before, c.verdict)
				}
				before = c.verdict
				got += map[Verdict]string{Unknown: "u", Up: "U", Down: "D"}[c.verdict]
			}
			if got != tc.verdicts {
				t.Errorf("answers %s: verdicts %s, want %s", tc.answers, got, tc.verdicts)
			}
		})
	}
}

func TestCombine(t *testing.T) {
	for _, tc := range []struct {
		in   []Verdict
		want Verdict
	}{
		{nil, Up},
		{[]Verdict{Up, Up}, Up},
		{[]Verdict{Up, Unknown}, Unknown},
		{[]Verdict{Unknown, Down}, Down},
		{[]Verdict{Down, Up}, Down},
	} {
		if got := combine(tc.in...); got != tc.want {
			t.Errorf("combine(%v) = %v, want %v", tc.in, got, tc.want)
		}
	}
}
