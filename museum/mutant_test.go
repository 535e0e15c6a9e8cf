package museum

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mutant is one patch.
type mutant struct {
	name  string
	rule  string // that it breaks, as a sentence
	from  string // where the rule, or the defect, comes from
	suite string // that convicts it
	model string // where the same rule is off in a model, as in "lease/OLD_SIGHT": for the suite model, or if the other does not find it
	reach string // why no suite can; empty: one does
	twin  string // of one that is out of reach: the mutant that has the rule that covers for it off, too
	hunks []hunk
}

// hunk is one place in a file. Old must be there exactly once.
type hunk struct{ file, old, new string }

// root is the directory of the module, seen from this package.
const root = ".."

// mutants reads all patches, in the order of their names.
func mutants() ([]mutant, error) {
	files, err := filepath.Glob("mutants/*.patch")
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var all []mutant
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m, err := parse(strings.TrimSuffix(filepath.Base(file), ".patch"), string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %v", file, err)
		}
		all = append(all, m)
	}
	return all, nil
}

// parse reads a patch: lines of "key: value", and hunks. A hunk begins with "@@ file"; its lines
// begin with a blank (unchanged), a minus or a plus.
func parse(name, text string) (mutant, error) {
	m := mutant{name: name}
	head, body, found := strings.Cut(text, "\n@@ ")
	fields := map[string]*string{"rule": &m.rule, "from": &m.from, "suite": &m.suite, "model": &m.model, "out of reach": &m.reach, "twin": &m.twin}
	for line := range strings.Lines(head) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		switch field := fields[key]; {
		case key == "":
		case !ok || field == nil:
			return m, fmt.Errorf("cannot read %q: the keys are rule, from, suite, model, out of reach, twin", line)
		default:
			*field = value
		}
	}
	if !found || m.rule == "" || m.from == "" || m.suite == "" && m.reach == "" {
		return m, fmt.Errorf("cannot read the patch: it needs rule, from, suite (or out of reach), and a hunk")
	}
	if m.suite == "model" && m.model == "" || m.reach == "" && m.twin != "" {
		return m, fmt.Errorf("cannot read the patch: the suite model needs the key model, and twin goes with out of reach")
	}
	for part := range strings.SplitSeq(body, "\n@@ ") {
		file, lines, _ := strings.Cut(part, "\n")
		h := hunk{file: strings.TrimSpace(file)}
		for line := range strings.Lines(strings.TrimRight(lines, "\n") + "\n") {
			switch line[0] {
			case ' ', '\n':
				h.old, h.new = h.old+strings.TrimPrefix(line, " "), h.new+strings.TrimPrefix(line, " ")
			case '-':
				h.old += line[1:]
			case '+':
				h.new += line[1:]
			default:
				return m, fmt.Errorf("cannot read %q: it begins with neither a blank, a minus nor a plus", line)
			}
		}
		m.hunks = append(m.hunks, h)
	}
	return m, nil
}

// apply returns the changed files of some mutants, by their paths in the module.
func apply(all ...mutant) (map[string]string, error) {
	changed := map[string]string{}
	for _, m := range all {
		for _, h := range m.hunks {
			text, there := changed[h.file]
			if !there {
				b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(h.file)))
				if err != nil {
					return nil, fmt.Errorf("%s: %v", m.name, err)
				}
				text = string(b)
			}
			if n := strings.Count(text, h.old); n != 1 {
				return nil, fmt.Errorf("%s: %d places in %s, want one, have\n%s", m.name, n, h.file, h.old)
			}
			changed[h.file] = strings.Replace(text, h.old, h.new, 1)
		}
	}
	return changed, nil
}

// overlay writes the changed files of some mutants into a directory. It returns the file for go
// build -overlay.
func overlay(dir string, all ...mutant) (string, error) {
	changed, err := apply(all...)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for file, text := range changed {
		from, err := filepath.Abs(filepath.Join(root, filepath.FromSlash(file)))
		if err != nil {
			return "", err
		}
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[from] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "mutant.json")
	return path, os.WriteFile(path, b, 0o600)
}
