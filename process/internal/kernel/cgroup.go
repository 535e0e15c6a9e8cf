package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// MakeCgroup makes a cgroup (v2) named name below this process's own and returns its directory. It
// fails where there is no v2 hierarchy, where we may not write to it, or where the kernel is older
// than cgroup.kill (5.14).
func MakeCgroup(name string) (string, error) {
	base, err := ownCgroup()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, name)
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // a cgroup, as systemd makes them
		return "", fmt.Errorf("cannot make a cgroup: %v", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "cgroup.kill"), os.O_WRONLY, 0)
	if err != nil {
		return "", errors.Join(fmt.Errorf("cannot use a cgroup: %v", err), os.Remove(dir))
	}
	_ = f.Close()
	return dir, nil
}

// ownCgroup returns the directory of this process's cgroup in the v2 hierarchy, which on a hybrid
// host is mounted below the v1 ones.
func ownCgroup() (string, error) {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("cannot find the own cgroup: %v", err)
	}
	own := ""
	for line := range strings.Lines(string(self)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			own = path
		}
	}
	if own == "" || strings.HasPrefix(own, "/..") {
		return "", errors.New("cannot find the own cgroup: it is outside of what is visible here")
	}
	return CgroupDir(own)
}

// CgroupDir returns the directory of a cgroup of the v2 hierarchy.
func CgroupDir(path string) (string, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("cannot find the cgroup mount: %v", err)
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		front, back, ok := strings.Cut(lines.Text(), " - ")
		if !ok || !strings.HasPrefix(back, "cgroup2 ") {
			continue
		}
		fields := strings.Fields(front) // id parent device root mountpoint …
		if len(fields) < 5 {
			continue
		}
		below, ok := strings.CutPrefix(path, strings.TrimSuffix(fields[3], "/"))
		if !ok {
			continue
		}
		return filepath.Join(unescapeMount(fields[4]), below), nil
	}
	return "", errors.New("cannot find a cgroup v2 hierarchy")
}

func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Cgroup is the open handles of one cgroup. They are opened ahead, because opening takes memory,
// and a path may be gone.
type Cgroup struct {
	path                string
	Dir, killFD, Events int
	buf                 [256]byte
}

func OpenCgroup(path string) (*Cgroup, error) {
	c := &Cgroup{path: path, Dir: -1, killFD: -1, Events: -1}
	for _, f := range []struct {
		fd    *int
		name  string
		flags int
	}{
		{&c.Dir, "", unix.O_RDONLY | unix.O_DIRECTORY},
		{&c.killFD, "/cgroup.kill", unix.O_WRONLY},
		{&c.Events, "/cgroup.events", unix.O_RDONLY},
	} {
		fd, err := unix.Open(path+f.name, f.flags|unix.O_CLOEXEC, 0)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("cannot open cgroup %s: %w", path+f.name, err)
		}
		*f.fd = fd
	}
	return c, nil
}

func (c *Cgroup) Close() {
	for _, fd := range []int{c.Dir, c.killFD, c.Events} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// Path returns the directory of the cgroup.
func (c *Cgroup) Path() string { return c.path }

// Kill ends every process in the cgroup and below, also those that are being forked at this moment.
func (c *Cgroup) Kill() error {
	c.buf[0] = '1'
	_, err := unix.Write(c.killFD, c.buf[:1])
	return err
}

// Rehearse goes the way of kill without effect: what it writes is refused. A real kill of the empty
// cgroup would not do, because Linux (6.18, for one) then also kills what is started in the cgroup
// from outside afterwards.
func (c *Cgroup) Rehearse() {
	c.buf[0] = '0'
	_, _ = unix.Write(c.killFD, c.buf[:1])
	_ = c.Populated()
}

// Populated tells whether there is a living process in the cgroup or below.
func (c *Cgroup) Populated() bool {
	n, err := unix.Pread(c.Events, c.buf[:], 0)
	if err != nil {
		return err != unix.ENODEV // ENODEV: the cgroup was removed, so nothing is in it
	}
	const word = "populated "
	for i := 0; i+len(word) < n; i++ {
		if string(c.buf[i:i+len(word)]) == word {
			return c.buf[i+len(word)] != '0'
		}
	}
	return true
}

// FindCgroups returns the directories of the cgroups that are this user's and whose names begin
// with prefix, wherever in the visible hierarchy they are.
func FindCgroups(prefix string) []string {
	root, err := CgroupDir("/")
	if err != nil { // a part of it is all that is visible here
		if root, err = ownCgroup(); err != nil {
			return nil
		}
	}
	var found []string
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), prefix) {
			if info, err := d.Info(); err == nil && int(info.Sys().(*syscall.Stat_t).Uid) == os.Geteuid() {
				found = append(found, path)
			}
			return fs.SkipDir
		}
		return nil
	})
	return found
}

// CgroupPrefix begins the names of cgroups that are made, and removed, here. Others belong to
// systemd.
const CgroupPrefix = "tanist-"

// RemoveCgroup removes the cgroup, if it was made here, and those that the program made below it.
// All must be empty of processes.
func RemoveCgroup(path string) error {
	if !strings.HasPrefix(filepath.Base(path), CgroupPrefix) {
		return nil
	}
	var dirs []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return nil
	})
	for _, dir := range slices.Backward(dirs) {
		if e := unix.Rmdir(dir); e != nil && e != unix.ENOENT {
			err = errors.Join(err, fmt.Errorf("cannot remove cgroup %s: %v", dir, e))
		}
	}
	return err
}
