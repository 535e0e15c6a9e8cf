package daemon

import (
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
)

// The bounds of what is kept of the controller's output.
const (
	outputLines = 1000
	outputBytes = 256 << 10
	outputLine  = 4 << 10 // the rest of a longer line is cut off
)

// outputRing keeps the last lines of the controller's output, for people who ask why it failed. It
// outlives the controller, not the sidecar.
type outputRing struct {
	mu    sync.Mutex
	lines []string
	bytes int
	lost  bool // there were more
}

// add keeps a line. It does not keep the slice. A nil ring keeps nothing.
func (r *outputRing) add(line []byte) {
	if r == nil {
		return
	}
	if len(line) > outputLine {
		line = line[:outputLine]
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, string(line))
	r.bytes += len(line)
	drop := 0
	for len(r.lines)-drop > outputLines || r.bytes > outputBytes {
		r.bytes -= len(r.lines[drop])
		drop++
	}
	if drop > 0 {
		r.lost = true
		// Copied now and then, so that the dropped lines are freed.
		r.lines = append(make([]string, 0, outputLines+1), r.lines[drop:]...)
	}
}

func (r *outputRing) get() (lines []string, lost bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.lines...), r.lost
}

// outputDocument returns the last lines of the controller's output, where the sidecar can know them.
func outputDocument(c *config.Controller, incarnation string, ring *outputRing) (election.OutputRecord, error) {
	o := election.OutputRecord{Cluster: c.Cluster, Controller: c.Name, Incarnation: incarnation, Output: c.Run.Output, Lines: []string{}}
	file, isFile := strings.CutPrefix(c.Run.Output, "file:")
	switch {
	case c.Run.Driver == "systemd":
		o.Elsewhere = "the unit's journal: journalctl -u " + c.Run.Unit
	case isFile:
		lines, lost, err := tail(file)
		if err != nil {
			return o, err
		}
		o.Lines, o.Lost = lines, lost
	case c.Run.Output == "log":
		o.Lines, o.Lost = ring.get()
	case c.Run.Output == "journal":
		o.Elsewhere = "the journal: journalctl -t " + c.Cluster + "-" + c.Name
	default:
		o.Elsewhere = ownOutput(os.Getenv("JOURNAL_STREAM"), "/proc/self/cgroup") + "; with run.output: log, or file:PATH, it is kept here"
	}
	return o, nil
}

// ownOutput returns where the sidecar's standard output goes, as far as it knows. systemd sets stream
// if that is the journal.
func ownOutput(stream, cgroup string) string {
	const own = "the sidecar's own standard output"
	if stream == "" {
		return own
	}
	b, _ := os.ReadFile(cgroup) // without it, the unit is not named
	for line := range strings.Lines(string(b)) {
		if unit := path.Base(strings.TrimSpace(line)); strings.HasSuffix(unit, ".service") {
			return own + ", in the journal of its unit: journalctl -u " + unit
		}
	}
	return own + ", in the journal"
}

// tail returns the last lines of a file. What is no regular file could block.
func tail(path string) (lines []string, lost bool, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return []string{}, false, nil // nothing was started yet
	}
	if err != nil {
		return nil, false, err
	}
	if !info.Mode().IsRegular() {
		return nil, false, errors.New("cannot read the output: " + path + " is no regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	from := max(0, info.Size()-outputBytes)
	b, err := io.ReadAll(io.NewSectionReader(f, from, outputBytes))
	if err != nil {
		return nil, false, err
	}
	text := strings.TrimSuffix(string(b), "\n")
	if from > 0 { // the first line is a part of one
		_, text, _ = strings.Cut(text, "\n")
	}
	if text == "" {
		return []string{}, from > 0, nil
	}
	lines = strings.Split(text, "\n")
	if n := len(lines) - outputLines; n > 0 {
		lines, lost = lines[n:], true
	}
	for i, line := range lines {
		if len(line) > outputLine {
			lines[i] = line[:outputLine]
		}
	}
	return lines, lost || from > 0, nil
}
