package simulation

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A run depends on its seed alone only if Go's own dice fall the same way every time: which ready case a select takes, where
// the iteration of a map begins, which of two timers of one instant is first. Package synctest leaves them as they are.
// So the binary that plays seeds is built with a few lines of the runtime changed: inside a bubble these dice begin anew with each
// bubble, and neither the real time that has passed nor the runtime's own goroutines change the order in which those of a bubble run.

// change is one place in a file of the runtime.
type change struct{ file, old, new string }

var changes = []change{
	{"stack.go", "startingStackSize uint32 = fixedStack", "startingStackSize uint32 = 16384"}, // few goroutines here need less
	{"stack.go", "startingStackSize = fixedStack", "startingStackSize = 16384"},
	{"rand.go", "func rand() uint64 {\n", "func rand() uint64 {\n\tif x, ok := simulated(); ok {\n\t\treturn x\n\t}\n"},
	{"select.go", "cheaprandn(uint32(norder + 1))", "simulatedn(uint32(norder + 1))"},
	{"rand.go", "var globalRand struct {", dicePatch + "var globalRand struct {"},
	{"time.go", "t.rand = cheaprand()", "t.rand = uint32(simulatedNext() >> 32)"},
	{"synctest.go", "	gp.bubble = bubble\n", "	gp.bubble = bubble\n	simulatedState = 0\n"},
	{"proc.go", "runqput(mp.p.ptr(), gp, next)", "runqput(mp.p.ptr(), gp, next && gp.bubble != nil)"},
	{"proc.go", "} else if pd.schedwhen+forcePreemptNS <= now {\n			preemptone(pp)\n", "} else if pd.schedwhen+forcePreemptNS <= now {\n"},
}

const dicePatch = `var simulatedState uint64

//go:nosplit
func simulatedNext() uint64 {
	simulatedState += 0x9e3779b97f4a7c15
	x := simulatedState
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// simulatedn is cheaprandn. What the runtime itself draws, where its locks are contended say, must not count.
//
//go:nosplit
func simulatedn(n uint32) uint32 {
	if x, ok := simulated(); ok {
		return uint32((x >> 32) * uint64(n) >> 32)
	}
	return cheaprandn(n)
}

//go:nosplit
func simulated() (uint64, bool) {
	gp := getg().m.curg
	if gp == nil || gp.bubble == nil {
		return 0, false
	}
	return simulatedNext(), true
}

`

// overlay writes the changed files of the runtime into dir, and what replaces what into another
// one. It returns the argument for go build.
func overlay(dir, into string) (arg string, err error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("cannot find the runtime: %v", err)
	}
	root := filepath.Join(strings.TrimSpace(string(out)), "src", "runtime")
	text := map[string]string{}
	for _, c := range changes {
		if text[c.file] == "" {
			b, err := os.ReadFile(filepath.Join(root, c.file))
			if err != nil {
				return "", fmt.Errorf("cannot read the runtime: %v", err)
			}
			text[c.file] = string(b)
		}
		if !strings.Contains(text[c.file], c.old) {
			return "", fmt.Errorf("cannot change the runtime: %s has no %q: this version of Go needs other changes", c.file, c.old)
		}
		text[c.file] = strings.ReplaceAll(text[c.file], c.old, c.new)
	}
	replace := map[string]string{}
	for file, changed := range text {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(root, file)] = path
	}
	if err := mutated(replace); err != nil {
		return "", err
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(into, "overlay.json")
	return "-overlay=" + path, os.WriteFile(path, b, 0o644)
}

// mutated adds the files that a mutant replaces.
func mutated(replace map[string]string) error {
	if *mutant == "" {
		return nil
	}
	b, err := os.ReadFile(*mutant)
	if err != nil {
		return fmt.Errorf("cannot read the mutant: %v", err)
	}
	var its struct{ Replace map[string]string }
	if err := json.Unmarshal(b, &its); err != nil {
		return fmt.Errorf("cannot read the mutant: %v", err)
	}
	maps.Copy(replace, its.Replace)
	return nil
}

// build builds the binary that plays seeds into a directory.
func build(into string) (path string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	// Always in one place: the compiled packages stay good for the next time.
	dir := filepath.Join(cache, "tanist-simulation")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	arg, err := overlay(dir, into)
	if err != nil {
		return "", err
	}
	path = filepath.Join(into, "player")
	if out, err := exec.Command("go", "test", "-c", arg, "-o", path, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build the player: %v\n%s", err, out)
	}
	return path, nil
}
