package haproxy

import (
	"fmt"
	"slices"
	"strings"
)

// Diff returns the difference between two texts in the unified format with three lines of context, or "" if there is
// none.
func Diff(oldName, newName string, old, new []byte) string {
	a, b := splitLines(old), splitLines(new)
	// The longest common subsequence, from the ends. A configuration has hundreds of lines, not millions.
	lcs := make([][]int32, len(a)+1)
	for i := range lcs {
		lcs[i] = make([]int32, len(b)+1)
	}
	for i, line := range slices.Backward(a) {
		for j := len(b) - 1; j >= 0; j-- {
			if line == b[j] {
				lcs[i][j] = lcs[i+1][j+1] + 1
			} else {
				lcs[i][j] = max(lcs[i+1][j], lcs[i][j+1])
			}
		}
	}
	type edit struct {
		op   byte
		text string
	}
	var edits []edit
	changed := false
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			edits = append(edits, edit{' ', a[i]})
			i++
			j++
		case j == len(b) || i < len(a) && lcs[i+1][j] >= lcs[i][j+1]:
			edits = append(edits, edit{'-', a[i]})
			i++
			changed = true
		default:
			edits = append(edits, edit{'+', b[j]})
			j++
			changed = true
		}
	}
	if !changed {
		return ""
	}
	const context = 3
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", oldName, newName)
	line := [2]int{1, 1} // of the next edit, in old and new
	for k := 0; k < len(edits); {
		if edits[k].op == ' ' {
			line[0]++
			line[1]++
			k++
			continue
		}
		start := max(k-context, 0)
		for i := start; i < k; i++ {
			line[0]--
			line[1]--
		}
		end, quiet := k, 0
		for end < len(edits) && quiet <= 2*context {
			if edits[end].op == ' ' {
				quiet++
			} else {
				quiet = 0
			}
			end++
		}
		end -= max(quiet-context, 0)
		var n [2]int
		for _, e := range edits[start:end] {
			if e.op != '+' {
				n[0]++
			}
			if e.op != '-' {
				n[1]++
			}
		}
		fmt.Fprintf(&out, "@@ -%d,%d +%d,%d @@\n", line[0], n[0], line[1], n[1])
		for _, e := range edits[start:end] {
			out.WriteByte(e.op)
			out.WriteString(e.text)
			out.WriteByte('\n')
		}
		line[0] += n[0]
		line[1] += n[1]
		k = end
	}
	return out.String()
}

func splitLines(b []byte) []string {
	s := strings.TrimSuffix(string(b), "\n")
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}
