package file

import (
	_ "embed"
	"fmt"
	"strings"
)

//go:embed store.go
var storeSource string

//go:embed store_test.go
var testSource string

// Scaffold returns the files of a new plugin's module, by name: this store and its test, under
// another name.
func Scaffold(name string) map[string][]byte {
	own := func(source string) []byte {
		source = strings.Replace(source, "\npackage file\n", "\npackage main\n", 1)
		source = strings.TrimPrefix(source, "package file\n")
		source = strings.ReplaceAll(source, `Name: "file"`, fmt.Sprintf("Name: %q", name))
		source = strings.Replace(source, "// Package file is", "// Tanist-plugin-"+name+" is", 1)
		if !strings.Contains(source, "package main\n") {
			source = "package main\n" + source
		}
		return []byte(source)
	}
	return map[string][]byte{
		"go.mod":        []byte("module tanist-plugin-" + name + "\n\ngo 1.26.8\n"),
		"main.go":       []byte("package main\n\nimport \"github.com/tanist/tanist/plugin\"\n\nfunc main() { plugin.Serve(Plugin()) }\n"),
		"store.go":      own(storeSource),
		"store_test.go": own(testSource),
	}
}
