package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
	"github.com/tanist/tanist/plugin"
	"github.com/tanist/tanist/plugin/file"
)

// harness is one cluster of the file store, behind a plugin.
type harness struct {
	spec Spec
	dir  string
}

func (h harness) Open(t *testing.T) electiontest.Host {
	return opened(t, h.spec, options(h.dir, h.dir))
}

// TestContract: the contract holds through the plugin.
func TestContract(t *testing.T) {
	s := spec(t)
	electiontest.Contract(t, func(t *testing.T) electiontest.Harness { return harness{s, t.TempDir()} })
}

func TestTakeoversGrowNothing(t *testing.T) {
	h := harness{spec(t), t.TempDir()}
	electiontest.TakeoversGrowNothing(t, func() electiontest.Host { return h.Open(t) })
}

// stage has the candidates of one cluster, and notes when two reign at the same time.
type stage struct {
	t *testing.T

	mu       sync.Mutex
	reigning map[string]*election.Tenure
	term     election.Term // the highest that has reigned
	overlaps []string
}

// candidate is one side.
type candidate struct {
	name   string
	store  *Store
	faults string
	stop   func()
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, reigning: map[string]*election.Tenure{}}
	t.Cleanup(func() {
		for _, overlap := range s.overlaps {
			t.Error(overlap)
		}
	})
	return s
}

// join starts a candidate.
func (s *stage) join(name, dir string, timing election.Timing) *candidate {
	c := &candidate{name: name, faults: s.t.TempDir()}
	c.store = opened(s.t, spec(s.t), options(dir, c.faults))
	e := &election.Elector{
		Backend: c.store, Timing: timing, Clock: election.BootClock, YieldWait: time.Second,
		Self:   func() election.Self { return election.Self{Name: name, Incarnation: name + "-1", Fit: true} },
		Record: func() election.Active { return election.Active{URL: "http://" + name + ":8080"} },
		Lead:   func(ctx context.Context, t *election.Tenure) election.End { return s.lead(ctx, name, t) },
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { e.Run(ctx) })
	c.stop = func() { cancel(); running.Wait() }
	s.t.Cleanup(c.stop)
	return c
}

// lead reigns until ctx ends. What a guard would keep running ends with the validity, whatever the
// rest of the process does.
func (s *stage) lead(ctx context.Context, name string, t *election.Tenure) election.End {
	for wait := t.NotBefore().Sub(election.BootClock()); wait > 0; wait = t.NotBefore().Sub(election.BootClock()) {
		select {
		case <-ctx.Done():
			return election.End{Reason: "it never began"}
		case <-time.After(wait):
		}
	}
	s.mu.Lock()
	for other, its := range s.reigning {
		if t.Valid() && its.Valid() {
			s.overlaps = append(s.overlaps, fmt.Sprintf("%s began term %d while %s was valid in term %d", name, t.Held().Term, other, its.Held().Term))
		}
	}
	s.reigning[name] = t
	s.term = max(s.term, t.Held().Term)
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	delete(s.reigning, name)
	s.mu.Unlock()
	return election.End{Reason: context.Cause(ctx).Error()}
}

// reigns reports whether a candidate reigns, in which term.
func (s *stage) reigns(name string) (election.Term, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.reigning[name]
	if t == nil || !t.Valid() {
		return 0, false
	}
	return t.Held().Term, true
}

func (s *stage) await(name string) election.Term {
	s.t.Helper()
	var term election.Term
	await(s.t, name+" reigns", func() (is bool) {
		term, is = s.reigns(name)
		return is
	})
	return term
}

// brief is a timing with which a test need not wait for long. It leaves a plugin no time to be
// started again.
func brief() election.Timing {
	return election.Timing{TTL: 1200 * time.Millisecond, Validity: time.Second, RenewEvery: 200 * time.Millisecond, StopBudget: 200 * time.Millisecond}
}

// pair makes a reign, with b ready to take over.
func pair(t *testing.T, timing election.Timing) (s *stage, a, b *candidate, term election.Term) {
	dir := t.TempDir()
	s = newStage(t)
	a = s.join("ctl-a", dir, timing)
	term = s.await("ctl-a")
	b = s.join("ctl-b", dir, timing)
	await(t, "ctl-b's plugin runs", func() bool { return b.store.Plugin().pid() != 0 })
	// Something that a has seen since its first renewal, as there is in every cluster.
	if err := a.store.Put(t.Context(), election.Put{Key: "settings", Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.store.List(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	return s, a, b, term
}

// TestFaultyPluginCostsTheReignAndNeverMore: whatever the holder's plugin does, from slow to lying,
// is an unknown outcome. The reign ends with its validity, the other side takes over, and the two
// never reign at the same time. When the fault is over, the first can take over again.
func TestFaultyPluginCostsTheReignAndNeverMore(t *testing.T) {
	for _, fault := range []string{
		"slow",      // every answer comes after 2 s, and then it has been done
		"crash",     // at every call
		"freeze",    // at every call
		"old",       // the answers of long ago, again and again
		"malformed", // no versions, keys that nobody asked for, a revision from nowhere
		"lies",      // it claims to have renewed, and has not
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			s, a, b, term := pair(t, brief())
			inject(t, a.faults, fault)
			if next := s.await("ctl-b"); next <= term {
				t.Errorf("ctl-b reigns in term %d, after %d", next, term)
			}
			inject(t, a.faults, "")
			await(t, "ctl-a can read again", func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := a.store.Read(ctx)
				return err == nil
			})
			b.stop()
			s.await("ctl-a")
		})
	}
}

// TestWrongTermsAreNotBelieved: a term record that has another content at the same version than
// before is no answer.
func TestWrongTermsAreNotBelieved(t *testing.T) {
	t.Parallel()
	s, _, b, term := pair(t, brief())
	if _, err := b.store.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	inject(t, b.faults, "terms")
	_, err := b.store.Read(t.Context())
	if err == nil || !strings.Contains(err.Error(), "term has another content at version") {
		t.Errorf("a read of wrong terms: %v", err)
	}
	if got := s.await("ctl-a"); got != term {
		t.Errorf("ctl-a reigns in term %d, want %d", got, term)
	}
}

// TestReignSurvivesItsPlugin: a plugin that is killed or frozen is replaced within the validity, and
// the reign goes on with the same lease.
func TestReignSurvivesItsPlugin(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "frozen": syscall.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			timing, err := election.Profile(election.ProfileDefault)
			if err != nil {
				t.Fatal(err)
			}
			s, a, _, term := pair(t, timing)
			s.mu.Lock()
			lease := s.reigning["ctl-a"].LeaseID()
			s.mu.Unlock()
			old := a.store.Plugin().pid()
			if err := syscall.Kill(old, sig); err != nil {
				t.Fatal(err)
			}
			await(t, "another process of the plugin", func() bool {
				now := a.store.Plugin().pid()
				return now != 0 && now != old
			})
			if exists(old) {
				t.Errorf("process %d is still there", old)
			}
			end := election.BootClock().Add(timing.Validity + time.Second)
			for election.BootClock() < end {
				if got, is := s.reigns("ctl-b"); is {
					t.Fatalf("ctl-b reigns in term %d", got)
				}
				time.Sleep(10 * time.Millisecond)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if t2 := s.reigning["ctl-a"]; t2 == nil || t2.Held().Term != term || t2.LeaseID() != lease {
				t.Errorf("the reign of term %d did not continue", term)
			}
		})
	}
}

// TestUnknownIsNoAnswer: no error that a fault of a plugin causes is an answer of the store.
func TestUnknownIsNoAnswer(t *testing.T) {
	faults := t.TempDir()
	s := opened(t, spec(t), options(t.TempDir(), faults))
	lease, err := s.Grant(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), election.Put{Key: election.TermKey, Value: []byte("7")}); err != nil {
		t.Fatal(err)
	}
	for _, fault := range []string{"slow", "crash", "freeze", "malformed"} {
		inject(t, faults, fault)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err := s.Hold(ctx, election.Hold{Lease: lease, Beat: true})
		cancel()
		if err == nil {
			t.Errorf("%s: a renewal succeeded", fault)
		}
		for _, answer := range []error{election.ErrLost, election.ErrConflict, election.ErrDenied, election.ErrReadOnly, plugin.ErrNoLease} {
			if errors.Is(err, answer) {
				t.Errorf("%s: %v is %v", fault, err, answer)
			}
		}
		inject(t, faults, "")
		await(t, "it works again", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return s.Renew(ctx, lease) == nil
		})
	}
}

// asHost makes the test binary a host that keeps a lease through a plugin until it is killed.
const asHost = "TANIST_TEST_HOST"

// beHost renews a lease every 50 ms, and prints the plugin's process and the lease.
func beHost(args string) {
	dirs := strings.Split(args, ":")
	s, err := OpenStore(context.Background(), Spec{Name: "test", Dirs: dirs[:1]}, options(dirs[1], dirs[1]))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lease, err := s.Grant(context.Background(), time.Hour)
	for told := false; err == nil; told = true {
		if err = s.Renew(context.Background(), lease); !told {
			fmt.Println(s.Plugin().pid(), lease)
		}
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestPluginDiesWithItsHost: a host that is killed leaves no process of its plugin one second later,
// and its lease is not renewed once more. With TANIST_LONG, 50 times.
func TestPluginDiesWithItsHost(t *testing.T) {
	times := 3
	if long, _ := strconv.ParseBool(os.Getenv("TANIST_LONG")); long {
		times = 50
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var slowest time.Duration
	for range times {
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Env = append(os.Environ(), asHost+"="+plugins+":"+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatalf("the host has not started: %v", err)
		}
		number, lease, _ := strings.Cut(strings.TrimSpace(line), " ")
		pid, err := strconv.Atoi(number)
		if err != nil || !exists(pid) {
			t.Fatalf("the plugin is process %q, %v", number, err)
		}
		time.Sleep(120 * time.Millisecond) // into the renewals
		_ = cmd.Process.Kill()             // it is there
		killed := time.Now()
		for exists(pid) && time.Since(killed) < 10*time.Second {
			time.Sleep(time.Millisecond)
		}
		took := time.Since(killed)
		slowest = max(slowest, took)
		if took > time.Second {
			t.Errorf("process %d of the plugin outlived its host by %v", pid, took)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = cmd.Wait() // it was killed
		before := leaseEnds(t, dir, lease)
		time.Sleep(200 * time.Millisecond) // four renewals
		if after := leaseEnds(t, dir, lease); after != before {
			t.Errorf("the lease of a dead host was renewed: %s, then %s", before, after)
		}
	}
	t.Logf("%d of %d: the plugin was gone at most %v after its host", times, times, slowest)
}

// leaseEnds returns the record of a lease in the file of the store.
func leaseEnds(t *testing.T, dir, lease string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "orders.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, record, ok := strings.Cut(string(b), `"`+lease+`":`)
	if !ok {
		t.Fatalf("lease %s is not in %s", lease, b)
	}
	record, _, _ = strings.Cut(record, "}")
	return record
}

// BenchmarkRenewal compares a renewal through a plugin with the same store in this process.
func BenchmarkRenewal(b *testing.B) {
	run := func(b *testing.B, h electiontest.Host) {
		b.Helper()
		snap, err := h.Read(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		lease, err := h.Grant(b.Context(), time.Hour)
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Claim(b.Context(), election.Claim{
			Lease: lease, TermVersion: snap.TermVersion, Active: election.Active{Controller: "ctl-a", Term: 1, State: election.StateStarting},
			Breadcrumb: election.Breadcrumb{Term: 1, Controller: "ctl-a", Validity: time.Second},
		}); err != nil {
			b.Fatal(err)
		}
		var all []time.Duration
		for b.Loop() {
			began := time.Now()
			if _, err := h.Hold(b.Context(), election.Hold{Lease: lease}); err != nil {
				b.Fatal(err)
			}
			all = append(all, time.Since(began))
		}
		b.ReportMetric(float64(median(all).Microseconds()), "µs-median")
	}
	b.Run("inside", func(b *testing.B) {
		s, err := file.Open(plugin.Settings{Cluster: "orders", Values: map[string]string{"dir": b.TempDir()}})
		if err != nil {
			b.Fatal(err)
		}
		h := plugin.NewBackend(s, plugin.Options{Traits: file.Traits()})
		defer h.Close() //nolint:errcheck // the store in a file holds nothing
		run(b, h)
	})
	b.Run("plugin", func(b *testing.B) { run(b, opened(b, spec(b), options(b.TempDir(), b.TempDir()))) })
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}
