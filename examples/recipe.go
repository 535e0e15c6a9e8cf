package examples

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"
)

// files are the recipes. A recipe is the file of its directory whose name begins with "recipe".
//
//go:embed */recipe*
var files embed.FS

// Recipes returns the names of all recipes, sorted.
func Recipes() []string {
	var names []string
	dirs, _ := files.ReadDir(".") // an embedded directory is always readable
	for _, d := range dirs {
		names = append(names, d.Name())
	}
	slices.Sort(names)
	return names
}

// Recipe returns the text of a recipe. The error names the recipes that exist.
func Recipe(name string) (string, error) {
	if slices.Contains(Recipes(), name) {
		entries, _ := files.ReadDir(name)
		b, err := files.ReadFile(path.Join(name, entries[0].Name()))
		return string(b), err
	}
	return "", fmt.Errorf("there is no recipe %q: the recipes are %s", name, strings.Join(Recipes(), ", "))
}
