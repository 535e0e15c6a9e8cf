package examples

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tanist/tanist/cmd/tanist/config"
)

// TestConfigurationFilesAreValid: the configuration files of the examples are without a problem, but for
// programs and files that are not on this host.
func TestConfigurationFilesAreValid(t *testing.T) {
	all, err := filepath.Glob("*/*.yml")
	if err != nil || len(all) == 0 {
		t.Fatalf("found %v (%v)", all, err)
	}
	for _, file := range all {
		if _, err := config.Load(config.Options{File: file, Away: true, Env: func(string) string { return "" }}); err != nil {
			t.Error(err)
		}
	}
}

// TestEveryExampleHasARecipe: a directory of this package has exactly one recipe and a README that links
// to it, and the error about an unknown one names them all.
func TestEveryExampleHasARecipe(t *testing.T) {
	readmes, err := filepath.Glob("*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, readme := range readmes {
		dir := filepath.Dir(readme)
		dirs = append(dirs, dir)
		recipes, err := filepath.Glob(dir + "/recipe*")
		if err != nil || len(recipes) != 1 {
			t.Errorf("%s has the recipes %v (%v), want one", dir, recipes, err)
			continue
		}
		b, err := os.ReadFile(readme)
		if err != nil {
			t.Fatal(err)
		}
		if name := filepath.Base(recipes[0]); !strings.Contains(string(b), "]("+name+")") {
			t.Errorf("%s does not link to %s", readme, name)
		}
		want, err := os.ReadFile(recipes[0])
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Recipe(dir); err != nil || got != string(want) {
			t.Errorf("the recipe %s is %q (%v)", dir, got, err)
		}
	}
	if slices.Sort(dirs); !slices.Equal(dirs, Recipes()) {
		t.Errorf("the recipes are %v, the directories %v", Recipes(), dirs)
	}
	if _, err := Recipe("../go"); err == nil || !strings.Contains(err.Error(), strings.Join(dirs, ", ")) {
		t.Errorf("an unknown recipe: %v", err)
	}
}
