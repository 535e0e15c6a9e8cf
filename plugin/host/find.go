package host

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/plugin/internal/handshake"
)

// Dirs returns the plugin directories that are searched by default, in order.
func Dirs() []string { return []string{"/usr/local/lib/tanist/plugins", "/usr/lib/tanist/plugins"} }

// FileName returns the name of the file of a plugin.
func FileName(name string) string { return handshake.FilePrefix + name }

// CheckName refuses what can't be the name of a plugin.
func CheckName(name string) error {
	if err := election.CheckName(name); err != nil {
		return fmt.Errorf("%q can't be the name of a plugin: %v", name, err)
	}
	return nil
}

// Found is a plugin's file.
type Found struct {
	Name   string
	Path   string
	SHA256 string // in lower-case hexadecimal digits
	Err    error  // why it would not be started; nil: it would
}

// executable is an opened plugin.
type executable struct {
	*os.File

	path string
	sum  string
}

// find opens the file of a plugin in the first directory that has one. A sum that is not empty is
// what its content must have.
func find(name string, dirs []string, sum string) (*executable, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		f, err := open(dir, FileName(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if sum != "" && !strings.EqualFold(sum, f.sum) {
			_ = f.Close() // it was only read
			return nil, fmt.Errorf("%s has the SHA-256 %s, and %s is expected", f.path, f.sum, strings.ToLower(sum))
		}
		return f, nil
	}
	return nil, fmt.Errorf("there is no %s in %s", FileName(name), strings.Join(dirs, ", "))
}

// Check reports why a plugin could not be started. The checksum may be empty.
func Check(name string, dirs []string, sum string) error {
	f, err := find(name, dirs, sum)
	if err != nil {
		return err
	}
	return f.Close()
}

// open opens a file of a plugin directory, and checks who could have written it.
func open(dir, name string) (*executable, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("the plugin directory %q is not an absolute path", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // it was only read
	// A symbolic link is followed inside the directory only.
	before, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name)
	if !before.Mode().IsRegular() { // opening a pipe would wait
		return nil, fmt.Errorf("%s is not a file", path)
	}
	at, err := root.Stat(".")
	if err != nil {
		return nil, err
	}
	if err := guarded(dir, at); err != nil {
		return nil, err
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	opened := &executable{File: f, path: path}
	if err := opened.check(); err != nil {
		_ = f.Close() // it was only read
		return nil, err
	}
	return opened, nil
}

// check refuses a file that others could have written, and sums up its content.
func (f *executable) check() error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := guarded(f.path, info); err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not an executable file", f.path)
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("cannot read %s: %v", f.path, err)
	}
	f.sum = hex.EncodeToString(h.Sum(nil))
	return nil
}

// guarded reports who else could change a file or a directory.
func guarded(path string, info fs.FileInfo) error {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: it must be root's or this user's", path, stat.Uid)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o): remove that right", path, info.Mode().Perm())
	}
	return nil
}

// List returns the plugins in some directories, in order of names. Of two with the same name, the
// first directory's counts. Directories that do not exist are skipped.
func List(dirs []string) ([]Found, error) {
	var all []Found
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list plugins: %v", err)
		}
		for _, e := range entries {
			name, ok := strings.CutPrefix(e.Name(), handshake.FilePrefix)
			if !ok || slices.ContainsFunc(all, func(f Found) bool { return f.Name == name }) {
				continue
			}
			found := Found{Name: name, Path: filepath.Join(dir, e.Name()), Err: CheckName(name)}
			if found.Err == nil {
				var f *executable
				if f, found.Err = open(dir, e.Name()); found.Err == nil {
					found.SHA256 = f.sum
					_ = f.Close() // it was only read
				}
			}
			all = append(all, found)
		}
	}
	slices.SortFunc(all, func(a, b Found) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// SpecOf returns the plugin that a file is, for the commands of a plugin's author.
func SpecOf(path string) (Spec, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return Spec{}, err
	}
	name, ok := strings.CutPrefix(filepath.Base(path), handshake.FilePrefix)
	if !ok {
		return Spec{}, fmt.Errorf("%s: the name of a plugin's file begins with %s", path, handshake.FilePrefix)
	}
	return Spec{Name: name, Dirs: []string{filepath.Dir(path)}}, CheckName(name)
}
