package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/process"
)

// stateDir returns this controller's own directory. Older versions gave ("a", "b-c") and ("a-b",
// "c") the same one; stateDir takes over what one of them left there if it is certainly ours.
func stateDir(c *config.Controller, log zerolog.Logger) string {
	dir := filepath.Join(c.StateDir, process.StateName(c.Cluster, c.Name))
	old := filepath.Join(c.StateDir, c.Cluster+"-"+c.Name)
	if old == dir {
		return dir
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return dir
	}
	if info, err := os.Lstat(old); err != nil || !info.IsDir() || !process.KeptIn(old, process.Identity{Cluster: c.Cluster, Controller: c.Name}) {
		return dir
	}
	// The old guard still uses the old name.
	if err := os.Rename(old, dir); err != nil {
		log.Warn().Err(err).Str("dir", old).Msg("cannot move the state directory of an older version")
		return old
	}
	if err := os.Symlink(filepath.Base(dir), old); err != nil {
		log.Warn().Err(err).Str("dir", old).Msg("cannot create a link to the new state directory")
	}
	return dir
}

// CheckUnit returns the problem of a controller's systemd unit; asked is false if there is no unit
// or no systemd to ask.
func CheckUnit(ctx context.Context, c *config.Controller) (asked bool, err error) {
	if c.Run.Driver != "systemd" {
		return false, nil
	}
	env := c.Run.EnvFile
	if env == "" {
		env = filepath.Join(c.StateDir, process.StateName(c.Cluster, c.Name), "environment")
	}
	err = process.CheckUnit(ctx, process.SystemdConfig{Unit: c.Run.Unit, EnvFile: env})
	if errors.Is(err, process.ErrNoSystemd) {
		return false, err
	}
	return true, err
}
