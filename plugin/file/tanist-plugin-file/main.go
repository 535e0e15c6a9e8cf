// Tanist-plugin-file is the plugin of package file: a store in a directory, for processes of one
// host.
package main

import (
	"github.com/tanist/tanist/plugin"
	"github.com/tanist/tanist/plugin/file"
)

func main() { plugin.Serve(file.Plugin()) }
