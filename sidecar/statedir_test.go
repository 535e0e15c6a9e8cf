package sidecar

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

func openState(t *testing.T, dir, host, incarnation string) (*StateDir, error) {
	t.Helper()
	return OpenState(dir, "orders", "ctl-a", host, incarnation, func(err error) { t.Errorf("%v", err) })
}

func mustOpen(t *testing.T, dir, host, incarnation string) *StateDir {
	t.Helper()
	d, err := openState(t, dir, host, incarnation)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSecondProcessWithTheStateDirectoryIsRefusedByPID(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first := mustOpen(t, dir, "here", "i1")
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = openState(t, dir, "here", "i2")
	var taken *StateTakenError
	if !errors.As(err, &taken) || taken.PID != os.Getpid() || taken.Dir != dir {
		t.Fatalf("the second process got %v", err)
	}
	if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
		t.Errorf("the refused process left %v, %v", after, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	next := mustOpen(t, dir, "here", "i2")
	defer next.Close()
	if next.Predecessor() != "i1" {
		t.Errorf("the predecessor is %q", next.Predecessor())
	}
}

func TestStateDirectoryOfAnotherControllerIsRefused(t *testing.T) {
	dir := t.TempDir() // orders-ctl-a would belong to ("orders", "ctl-a") and to ("orders-ctl", "a")
	if err := mustOpen(t, dir, "here", "i1").Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenState(dir, "orders-ctl", "a", "here", "i2", func(error) {}); err == nil {
		t.Error("the state of one controller was taken for another's")
	}
}

func TestWhatIsKnownOutlivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	d := mustOpen(t, dir, "boot-1", "i1")
	held := election.Held{
		Term: 7, Lease: "l", Incarnation: "i1", Nonce: "n", Reason: "first start", Previous: election.Breadcrumb{Term: 6, Clean: true},
		Timing: election.Timing{Validity: 4 * time.Second}, NotBefore: 99, Record: election.Active{Controller: "ctl-a", Term: 7},
	}
	known := election.Known{
		Term: 7, Validity: 4 * time.Second, CoolTill: 100, RestTill: 50,
		Unreleased: &election.Unreleased{Lease: "l", Breadcrumb: election.Breadcrumb{Term: 7, Nonce: "n", Clean: true}},
	}
	if err := d.Save(held); err != nil {
		t.Fatal(err)
	}
	for term := range election.Term(8) {
		k := known
		k.Term = term
		d.Remember(k) // the newest record wins
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = mustOpen(t, dir, "boot-1", "i2")
	if h := d.Held(); h == nil || !reflect.DeepEqual(*h, held) {
		t.Errorf("held: %+v", h)
	}
	if k := d.Known(); !reflect.DeepEqual(k, known) {
		t.Errorf("known: %+v", k)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = mustOpen(t, dir, "boot-2", "i3")
	if k := d.Known(); d.Held() != nil || k.Term != 7 || k.Unreleased == nil || k.CoolTill != 0 || k.RestTill != 0 {
		t.Errorf("after a reboot: held %+v, known %+v; want the term, and no instants of before", d.Held(), k)
	}
	if err := errors.Join(d.Clear(), d.Clear(), d.Close()); err != nil {
		t.Error(err)
	}
}

func TestReignOfTheVersionBeforeIsTakenUp(t *testing.T) {
	dir := t.TempDir()
	text := `{"host":"here","held":{"term":7,"lease":"l","incarnation":"i0","reason":"first start","previous":{"Term":6,"Clean":true}}}`
	if err := os.WriteFile(filepath.Join(dir, "reign.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d := mustOpen(t, dir, "here", "i1")
	defer d.Close()
	if h := d.Held(); h == nil || h.Term != 7 || h.Lease != "l" || d.Predecessor() != "i0" {
		t.Errorf("held %+v, predecessor %q", h, d.Predecessor())
	}
}

// TestRecordOfAReignIsOverwrittenInPlace: a process that is killed between the two steps of a Save
// leaves the end of a longer record behind, which does not count.
func TestRecordOfAReignIsOverwrittenInPlace(t *testing.T) {
	dir := t.TempDir()
	d := mustOpen(t, dir, "here", "i1")
	long := election.Held{Term: 7, Lease: "l", Incarnation: "i1", Reason: strings.Repeat("long ", 50)}
	short := election.Held{Term: 8, Lease: "l", Incarnation: "i1", Reason: "short"}
	if err := d.Save(long); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "reign.json")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Save(short); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(file)
	if err != nil || len(after) >= len(before) {
		t.Fatalf("%d bytes after %d: %v", len(after), len(before), err)
	}
	if err := errors.Join(os.WriteFile(file, append(after, before[len(after):]...), 0o600), d.Close()); err != nil {
		t.Fatal(err)
	}

	d = mustOpen(t, dir, "here", "i2")
	if h := d.Held(); h == nil || h.Term != 8 {
		t.Errorf("held %+v, want term 8", h)
	}
	if err := errors.Join(d.Clear(), d.Close()); err != nil {
		t.Fatal(err)
	}
	d = mustOpen(t, dir, "here", "i3")
	defer d.Close()
	if h := d.Held(); h != nil {
		t.Errorf("held %+v after it was cleared", h)
	}
}
