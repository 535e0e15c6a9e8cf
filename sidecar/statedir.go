package sidecar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// StateDir keeps what one process of a sidecar leaves to the next on the same host. Its process
// locks it, so that no other adopts what is in it. It is a [Memory].
type StateDir struct {
	dir   string
	host  string
	owner owner
	lock  *os.File
	fail  func(error) // called with failures of writes

	held        *election.Held
	incarnation string // of this process
	predecessor string

	writing sync.Mutex // held during each write of known
	mu      sync.Mutex
	known   election.Known
	pending bool
	written sync.WaitGroup
}

// StateTakenError is returned when another live process has the directory.
type StateTakenError struct {
	Dir string
	PID int // zero: unknown
}

func (e *StateTakenError) Error() string {
	return fmt.Sprintf("cannot lock the state directory %s: another sidecar uses it (PID %d): stop that one, or set state_dir", e.Dir, e.PID)
}

type owner struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
}

// The files of a state directory.
const (
	lockFile  = "sidecar.lock"
	reignFile = "reign.json" // an old name: a reign of the previous version can be resumed
	knownFile = "known.json"
)

// lockPatience is how long to wait for a process that is about to end.
const lockPatience = time.Second

type reignRecord struct {
	Host string        `json:"host"`
	Held election.Held `json:"held"`
}

type knownRecord struct {
	owner
	Host        string         `json:"host"`
	Incarnation string         `json:"incarnation"` // of the process that has, or last had, the directory
	Known       election.Known `json:"known"`
}

// OpenState locks the directory of one controller's sidecar, and reads what earlier processes left.
// host identifies the host since its boot; incarnation is this process's. Later failures to write
// are passed to fail.
func OpenState(dir, cluster, name, host, incarnation string, fail func(error)) (*StateDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot create the state directory: %v", err)
	}
	d := &StateDir{dir: dir, host: host, owner: owner{cluster, name}, incarnation: incarnation, fail: fail}
	if err := d.acquire(); err != nil {
		return nil, err
	}
	if err := d.load(); err != nil {
		return nil, errors.Join(err, d.lock.Close())
	}
	if err := d.write(); err != nil {
		return nil, errors.Join(err, d.lock.Close())
	}
	return d, nil
}

func (d *StateDir) acquire() error {
	f, err := os.OpenFile(filepath.Join(d.dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("cannot lock the state directory: %v", err)
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPatience / 50) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || time.Now().After(end) || !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		text := make([]byte, 20)
		n, _ := f.ReadAt(text, 0)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text[:n])))
		return errors.Join(&StateTakenError{Dir: d.dir, PID: pid}, f.Close())
	}
	if err == nil {
		if err = f.Truncate(0); err == nil {
			_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot lock the state directory %s: %v", d.dir, err), f.Close())
	}
	d.lock = f
	return nil
}

// load reads what earlier processes left. It omits what is unreadable, which would only have saved
// a wait.
func (d *StateDir) load() error {
	var k knownRecord
	switch err := d.read(knownFile, &k); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		d.fail(fmt.Errorf("cannot read what earlier processes recorded: %v", err))
	case k.owner != d.owner:
		return fmt.Errorf("cannot use the state directory %s: it belongs to controller %q of cluster %q: set state_dir", d.dir, k.Name, k.Cluster)
	default:
		d.known, d.predecessor = k.Known, k.Incarnation
		if k.Host != d.host { // instants from before a reboot mean nothing
			d.known.CoolTill, d.known.RestTill = 0, 0
		}
	}
	var r reignRecord
	switch err := d.read(reignFile, &r); {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, io.EOF): // none, or cleared
	case err != nil:
		d.fail(fmt.Errorf("cannot read the reign that an earlier process left: %v", err))
	case r.Host == d.host && r.Held.Term != 0 && r.Held.Lease != "" && r.Held.Incarnation != "":
		d.held = &r.Held
		if d.predecessor == "" {
			d.predecessor = r.Held.Incarnation // the previous version recorded it only here
		}
	}
	return nil
}

// Dir returns the path of the directory.
func (d *StateDir) Dir() string { return d.dir }

// Held returns the reign that an earlier process left, or nil.
func (d *StateDir) Held() *election.Held { return d.held }

// Known returns what earlier processes recorded, whatever became of the reign.
func (d *StateDir) Known() election.Known {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known
}

// Predecessor returns the incarnation of the last process that had the directory. That process is
// gone, because the directory was not locked.
func (d *StateDir) Predecessor() string { return d.predecessor }

// Save implements [Memory]. A takeover waits for it, so it neither syncs the file (no reign outlives
// its host) nor makes a new one: it overwrites the record, whose first line counts. Only the next
// process reads it, when this one is dead.
func (d *StateDir) Save(h election.Held) error {
	b, err := json.Marshal(reignRecord{Host: d.host, Held: h})
	if err == nil {
		err = d.overwrite(reignFile, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("cannot record the reign: %v", err)
	}
	return nil
}

// Clear implements [Memory].
func (d *StateDir) Clear() error {
	if err := os.Truncate(filepath.Join(d.dir, reignFile), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove the record of the reign: %v", err)
	}
	return nil
}

// overwrite writes text, which ends with a line feed, to the beginning of a file, then cuts off the
// rest. A process that is killed in between leaves a whole first line.
func (d *StateDir) overwrite(file string, text []byte) error {
	f, err := os.OpenFile(filepath.Join(d.dir, file), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	if err == nil {
		err = f.Truncate(int64(len(text)))
	}
	return errors.Join(err, f.Close())
}

// Remember records what later processes must know. It does not block: the file is written and
// synced in the background, and the newest record wins.
func (d *StateDir) Remember(k election.Known) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known = k
	if d.pending {
		return
	}
	d.pending = true
	d.written.Go(func() {
		if err := d.write(); err != nil {
			d.fail(err)
		}
	})
}

// Close waits for writes under way, and unlocks the directory.
func (d *StateDir) Close() error {
	d.written.Wait()
	return d.lock.Close()
}

// write writes what is known now.
func (d *StateDir) write() error {
	d.writing.Lock()
	defer d.writing.Unlock()
	d.mu.Lock()
	d.pending = false
	known := d.known
	d.mu.Unlock()
	if err := d.replace(knownFile, knownRecord{owner: d.owner, Host: d.host, Incarnation: d.incarnation, Known: known}); err != nil {
		return fmt.Errorf("cannot record what later processes must know: %v", err)
	}
	return nil
}

// read decodes the first line of a file. The error of an empty one is [io.EOF].
func (d *StateDir) read(file string, into any) error {
	b, err := os.ReadFile(filepath.Join(d.dir, file))
	if err != nil {
		return err
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	if len(b) == 0 {
		return io.EOF
	}
	return json.Unmarshal(line, into)
}

// replace writes a file atomically, and syncs it.
func (d *StateDir) replace(file string, record any) error {
	b, err := json.Marshal(record)
	if err != nil {
		return err
	}
	path := filepath.Join(d.dir, file)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
