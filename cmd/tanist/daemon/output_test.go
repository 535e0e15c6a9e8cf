package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tanist/tanist/cmd/tanist/config"
)

// TestOutputIsKeptInBounds: the last lines are kept, however many and long they are, and that there
// were more is told.
func TestOutputIsKeptInBounds(t *testing.T) {
	var r outputRing
	r.add([]byte("first"))
	if lines, lost := r.get(); len(lines) != 1 || lines[0] != "first" || lost {
		t.Errorf("%q, lost %v", lines, lost)
	}
	for i := range 3 * outputLines {
		r.add(fmt.Appendf(nil, "line %d", i))
	}
	lines, lost := r.get()
	if len(lines) != outputLines || lines[outputLines-1] != fmt.Sprintf("line %d", 3*outputLines-1) || !lost {
		t.Errorf("%d lines, the last %q, lost %v", len(lines), lines[len(lines)-1], lost)
	}
	long := []byte(strings.Repeat("x", 10*outputLine))
	for range outputLines {
		r.add(long)
	}
	lines, _ = r.get()
	size := 0
	for _, l := range lines {
		size += len(l)
	}
	if size > outputBytes || len(lines) < 10 {
		t.Errorf("%d lines of %d bytes are kept", len(lines), size)
	}
	long[0] = 'y'
	if lines[0][0] != 'x' {
		t.Error("the caller's memory is kept")
	}
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for range 100 {
				r.add(long)
				r.get()
			}
		})
	}
	writers.Wait()
}

// TestOutputOfAFileIsItsEnd: the sidecar reads what the program writes there, within bounds, and
// nothing that could block.
func TestOutputOfAFileIsItsEnd(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out.log")
	c := &config.Controller{Name: "ctl-a", Cluster: "orders", Run: config.Run{Output: "file:" + path}}
	if o, err := outputDocument(c, "i", nil); err != nil || len(o.Lines) != 0 || o.Elsewhere != "" {
		t.Errorf("before anything was started: %+v, %v", o, err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a\nb\n")
	if o, err := outputDocument(c, "i", nil); err != nil || strings.Join(o.Lines, ",") != "a,b" || o.Lost {
		t.Errorf("%+v, %v", o, err)
	}
	write(strings.Repeat("0123456789\n", outputBytes))
	o, err := outputDocument(c, "i", nil)
	if err != nil || len(o.Lines) != outputLines || o.Lines[0] != "0123456789" || !o.Lost {
		t.Errorf("%d lines, the first %q, %v", len(o.Lines), o.Lines[0], err)
	}
	c.Run.Output = "file:" + dir
	if _, err := outputDocument(c, "i", nil); err == nil || !strings.Contains(err.Error(), "is no regular file") {
		t.Errorf("a directory: %v", err)
	}
	for output, where := range map[string]string{"journal": "journalctl -t orders-ctl-a", "inherit": "standard output"} {
		c.Run.Output = output
		if o, err := outputDocument(c, "i", nil); err != nil || !strings.Contains(o.Elsewhere, where) {
			t.Errorf("%s: %+v, %v", output, o, err)
		}
	}
}

// TestOutputThatIsInheritedIsNamed: who asks for it is sent to the journal of the sidecar's unit, if it
// is there.
func TestOutputThatIsInheritedIsNamed(t *testing.T) {
	cgroup := filepath.Join(t.TempDir(), "cgroup")
	if err := os.WriteFile(cgroup, []byte("0::/system.slice/tanist-orders.service\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ stream, cgroup, want string }{
		{"", cgroup, "the sidecar's own standard output"},
		{"8:1234", cgroup, "the sidecar's own standard output, in the journal of its unit: journalctl -u tanist-orders.service"},
		{"8:1234", "/no/such/file", "the sidecar's own standard output, in the journal"},
	} {
		if got := ownOutput(c.stream, c.cgroup); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}
