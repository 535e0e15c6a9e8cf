package haproxy

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// load returns the -f arguments of HAProxy, in order.
func (c Config) load() []string {
	if len(c.Files) > 0 {
		return c.Files
	}
	return []string{c.ConfigFile}
}

// isLoaded reports whether ConfigFile is among the files that HAProxy loads.
func (c Config) isLoaded() bool {
	return slices.ContainsFunc(c.load(), func(f string) bool {
		return f == c.ConfigFile || (filepath.Clean(f) == filepath.Dir(c.ConfigFile) && isPart(filepath.Base(c.ConfigFile)))
	})
}

// isPart reports whether HAProxy loads a file of this name from a directory.
func isPart(name string) bool {
	return strings.HasSuffix(name, ".cfg") && !strings.HasPrefix(name, ".")
}

// loadWith returns what HAProxy would load if candidate took the place of ConfigFile.
func (c Config) loadWith(candidate string) ([]string, error) {
	var files []string
	for _, f := range c.load() {
		if f == c.ConfigFile {
			files = append(files, candidate)
			continue
		}
		if filepath.Clean(f) != filepath.Dir(c.ConfigFile) {
			files = append(files, f)
			continue
		}
		entries, err := os.ReadDir(f)
		if err != nil {
			return nil, fmt.Errorf("cannot check the files that HAProxy loads: %v", err)
		}
		names := []string{filepath.Base(c.ConfigFile)}
		for _, e := range entries {
			if isPart(e.Name()) && e.Name() != names[0] {
				names = append(names, e.Name())
			}
		}
		slices.Sort(names)
		for _, n := range names {
			if path := filepath.Join(f, n); path != c.ConfigFile {
				files = append(files, path)
			} else {
				files = append(files, candidate)
			}
		}
	}
	return files, nil
}

// foreign returns an error if somebody else wrote the configuration and it must not be replaced.
func (c Config) foreign() error {
	if c.ConfigFile == "" || c.Overwrite {
		return nil
	}
	have, err := os.ReadFile(c.ConfigFile)
	if errors.Is(err, fs.ErrNotExist) || len(bytes.TrimSpace(have)) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("haproxy.config: %v", err)
	}
	if _, ours := readHeader(have); ours {
		return nil
	}
	return fmt.Errorf("haproxy.config: %s was not written by Tanist, and may hold what other sites need: give Tanist a file of its own and name "+
		"all files in haproxy.files, or set haproxy.overwrite to replace it (it is kept as %s.before-tanist)", c.ConfigFile, filepath.Base(c.ConfigFile))
}
