package file

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestScaffoldWorks: what `tanist plugin init store` writes compiles, and its store passes.
func TestScaffoldWorks(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	// The files are shown to the compiler as a package of this module that is not there.
	dir, replace := t.TempDir(), map[string]string{}
	for name, text := range Scaffold("mine") {
		if filepath.Ext(name) != ".go" {
			continue
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(here, "mine", name)] = path
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		t.Fatal(err)
	}
	test := filepath.Join(dir, "test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", test, "-vet=off", "-overlay", overlay, "./mine").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), test, "-test.run", "TestContract/ClaimEffects")
	cmd.Dir = dir
	out, err = cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
