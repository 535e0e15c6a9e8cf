package haproxy

import (
	"fmt"
	"slices"
	"strings"
)

// edit is one line of a difference: unchanged (' '), removed ('-') or added ('+').
type edit struct {
	op   byte
	text string
}

// diffContext is the number of unchanged lines around a change.
const diffContext = 3

// Diff returns the difference between two texts in the unified format with three lines of context,
// or "" if they are equal.
func Diff(oldName, newName string, old, new []byte) string {
	edits := diffLines(splitLines(old), splitLines(new))
	if !slices.ContainsFunc(edits, func(e edit) bool { return e.op != ' ' }) {
		return ""
	}
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
		start := max(k-diffContext, 0)
		line[0] -= k - start
		line[1] -= k - start
		end := hunkEnd(edits, k)
		k = end
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
	}
	return out.String()
}

// hunkEnd returns the end of the hunk whose first change is at k: the end of its context. Two close
// changes share a hunk.
func hunkEnd(edits []edit, k int) int {
	end, quiet := k, 0
	for end < len(edits) && quiet <= 2*diffContext {
		if edits[end].op == ' ' {
			quiet++
		} else {
			quiet = 0
		}
		end++
	}
	return end - max(quiet-diffContext, 0)
}

// diffLines returns the edits that turn a into b, by their longest common subsequence. A
// configuration has hundreds of lines, not millions.
func diffLines(a, b []string) []edit {
	lcs := make([][]int32, len(a)+1) // of the rest of both, from an index on
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
	var edits []edit
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			edits = append(edits, edit{' ', a[i]})
			i++
			j++
		case j == len(b) || i < len(a) && lcs[i+1][j] >= lcs[i][j+1]:
			edits = append(edits, edit{'-', a[i]})
			i++
		default:
			edits = append(edits, edit{'+', b[j]})
			j++
		}
	}
	return edits
}

func splitLines(b []byte) []string {
	s := strings.TrimSuffix(string(b), "\n")
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}
