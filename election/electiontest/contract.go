package electiontest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tanist/tanist/election"
)

// Host is a store adapter as used by one host.
type Host interface {
	election.Backend
	// Follow sends what happens to the role key: the first sighting as soon as anything is known or
	// at the first failure, then one at every change and every failure. Sightings are in the order
	// of the store. A newer one may replace one that was not received. The channel is closed when
	// ctx has ended.
	Follow(ctx context.Context) <-chan election.Sighting
	Close() error
}

// Harness is one new and empty cluster in a store under test. It declares the faults that it can
// inject by also implementing [Linker], [Stranger], [Staller], [Restarter] and [LeaderChanger].
type Harness interface {
	// Open connects one more host to the cluster. The suite closes it.
	Open(t *testing.T) Host
}

// Linker is a [Harness] that can put a faulty network between one host and the store.
type Linker interface {
	OpenLinked(t *testing.T) (Host, Link)
}

// Stranger is a [Harness] that can write as a stranger does, with the store's own tools instead of
// the adapter. Keys are relative to the cluster.
type Stranger interface {
	Overwrite(t *testing.T, key, value string)
	Remove(t *testing.T, key string)
}

// LeaseKeeper is a [Stranger] that can also overwrite a key and leave it bound to its lease: etcd's
// put that ignores the lease, Consul's plain write.
type LeaseKeeper interface {
	OverwriteKept(t *testing.T, key, value string)
}

// Ender is a [Harness] that can end a lease as the store itself does when it expires. Nothing
// happens if the lease has ended already.
type Ender interface {
	EndLease(t *testing.T, lease election.LeaseID)
}

// Filler is a [Harness] that can make the store refuse writes, and accept them again. Reads work
// meanwhile.
type Filler interface {
	Fill(t *testing.T)
	Empty(t *testing.T)
}

// Staller is a [Harness] that can silence the watches of one host, without an error, while its
// other calls work.
type Staller interface {
	StallWatch(t *testing.T, h Host)
	ResumeWatch(t *testing.T, h Host)
}

// Restarter is a [Harness] that can stop the whole store and start it again with its data.
type Restarter interface {
	Stop(t *testing.T)
	Start(t *testing.T)
}

// LeaderChanger is a [Harness] whose store has a leader that can be killed. ChangeLeader returns
// when the leader is dead; a majority must remain.
type LeaderChanger interface {
	ChangeLeader(t *testing.T)
}

// patience bounds waits without a bound of their own, for a healthy store on an overloaded machine.
const patience = time.Minute

// Contract tests the obligations of [election.Backend] and Follow. open returns a new harness, for
// each test.
func Contract(t *testing.T, open func(t *testing.T) Harness) {
	for _, test := range []struct {
		name string
		run  func(*suite)
		slow bool // mostly waits, and does not disturb the store itself
	}{
		{"EmptyCluster", (*suite).empty, false},
		{"ClaimRaceHasOneWinner", (*suite).race, false},
		{"ClaimEffects", (*suite).claimEffects, false},
		{"ClaimPreconditions", (*suite).claimPreconditions, false},
		{"ClaimBySilence", (*suite).claimBySilence, false},
		{"ClaimRemovesOldBeat", (*suite).claimRemovesOldBeat, false},
		{"PublishAndRelease", (*suite).publishAndRelease, false},
		{"HandOver", (*suite).handOver, false},
		{"LeaseEndsMeanwhile", (*suite).leaseEndsMeanwhile, true},
		{"StrangerOverwritesRoleKey", (*suite).strangerOverwrites, false},
		{"StrangerDeletesRoleKey", (*suite).strangerDeletes, false},
		{"StrangerByOtherMeans", (*suite).strangerByOtherMeans, false},
		{"StrangerKeepsTheLease", (*suite).strangerKeepsTheLease, false},
		{"BindsItsReignAnew", (*suite).bindsAnew, true},
		{"ForgedTerms", (*suite).forgedTerms, false},
		{"TakesNoWrites", (*suite).takesNoWrites, false},
		{"CounterRewound", (*suite).counterRewound, false},
		{"UnreadableRecords", (*suite).unreadable, false},
		{"HolderKilled", (*suite).holderKilled, true},
		{"RenewalKeepsTheLease", (*suite).renewalKeeps, true},
		{"RevokeEndsTheLease", (*suite).revoke, false},
		{"KeysCompareAndSwap", (*suite).keys, false},
		{"WatchHints", (*suite).watch, true},
		{"FollowInOrder", (*suite).follow, false},
		{"FollowUnreadable", (*suite).followUnreadable, false},
		{"EndedContext", (*suite).endedContext, false},
		{"BlackHole", (*suite).blackHole, false},
		{"LostReplies", (*suite).lostReplies, false},
		{"BrokenLinkRecovers", (*suite).brokenLink, false},
		{"FollowThroughOutage", (*suite).followThroughOutage, true},
		{"StalledWatch", (*suite).stalledWatch, false},
		{"StoreRestarts", (*suite).restart, false},
		{"StoreLeaderKilled", (*suite).leaderKilled, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.slow {
				t.Parallel() // runs after the others, some of which stop the store or count goroutines
			}
			test.run(&suite{T: t, h: open(t)})
		})
	}
}

type suite struct {
	*testing.T
	h Harness
}

// lacks logs what is not tested.
func (s *suite) lacks(fault string) {
	s.Skipf("NOT TESTED: this harness cannot inject it: %s", fault)
}

func (s *suite) open() Host {
	s.Helper()
	h := s.h.Open(s.T)
	s.Cleanup(func() { _ = h.Close() })
	return h
}

func (s *suite) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	s.Cleanup(cancel)
	return ctx
}

// hold calls [election.Backend.Hold] and returns only its error.
func hold(ctx context.Context, h election.Backend, lease election.LeaseID, beat bool) error {
	_, err := h.Hold(ctx, election.Hold{Lease: lease, Beat: beat})
	return err
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) want(what string, err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Errorf("%s: %v, want %v", what, err, want)
	}
}

// unknown asserts that err has an unknown outcome.
func (s *suite) unknown(what string, err error) {
	s.Helper()
	if err == nil || errors.Is(err, election.ErrConflict) || errors.Is(err, election.ErrLost) || errors.Is(err, election.ErrDenied) {
		s.Errorf("%s: %v, want an error that is neither ErrConflict nor ErrLost nor ErrDenied", what, err)
	}
}

func (s *suite) read(h Host) election.Snapshot {
	s.Helper()
	snap, err := h.Read(s.ctx())
	s.must(err)
	return snap
}

func (s *suite) grant(h Host, ttl time.Duration) election.LeaseID {
	s.Helper()
	id, err := h.Grant(s.ctx(), ttl)
	s.must(err)
	if id == "" {
		s.Fatal("the id of a lease is empty")
	}
	return id
}

// value returns a key's value, "" if the key is absent, and "(empty)" if the value is empty.
func (s *suite) value(h Host, key string) string {
	s.Helper()
	e, err := h.Get(s.ctx(), key)
	s.must(err)
	if e.Version == 0 && len(e.Value) > 0 {
		s.Errorf("%s: a value without a version", key)
	}
	if e.Version != 0 && len(e.Value) == 0 {
		return "(empty)"
	}
	return string(e.Value)
}

// everything returns all keys of the cluster.
func (s *suite) everything(h Host) string {
	s.Helper()
	list, err := h.List(s.ctx(), "")
	s.must(err)
	var b strings.Builder
	for _, e := range list {
		fmt.Fprintf(&b, "%s=%s@%d %s\n", e.Key, e.Value, e.Version, e.Lease)
	}
	return b.String()
}

func active(name string, term election.Term, state election.State) election.Active {
	return election.Active{
		Controller: name, Term: term, State: state, URL: "http://" + name + ":8080", Reason: "a test",
		Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Incarnation: name + "-1",
	}
}

func claimOf(name string, snap election.Snapshot, lease election.LeaseID, beat bool) election.Claim {
	term := snap.Breadcrumb.Term + 1
	return election.Claim{
		Lease: lease, Active: active(name, term, election.StateStarting), TermVersion: snap.TermVersion, Beat: beat,
		Breadcrumb: election.Breadcrumb{Term: term, Controller: name, Incarnation: name + "-1", Validity: time.Second, Reason: "a test"},
		Previous:   snap.Breadcrumb.Controller,
	}
}

// reign makes name the holder.
func (s *suite) reign(h Host, name string, ttl time.Duration, beat bool) (election.LeaseID, election.Term) {
	s.Helper()
	snap := s.read(h)
	lease := s.grant(h, ttl)
	c := claimOf(name, snap, lease, beat)
	s.must(h.Claim(s.ctx(), c))
	return lease, c.Active.Term
}

// reignBriefly makes name the holder with a lease that will expire. On a slow machine it may expire
// before the claim; then the next one is longer.
func (s *suite) reignBriefly(h Host, name string, ttl time.Duration) (election.LeaseID, election.Term, time.Duration) {
	s.Helper()
	for {
		c := claimOf(name, s.read(h), s.grant(h, ttl), true)
		err := s.claimable(h, c)
		if err == nil {
			return c.Lease, c.Active.Term, ttl
		}
		if !errors.Is(err, election.ErrLost) || ttl > patience {
			s.Fatal(err)
		}
		ttl *= 2
	}
}

// long is the ttl of leases that do not expire within a test, however slow the machine is.
const long = 10 * time.Minute

func (s *suite) empty() {
	h := s.open()
	snap := s.read(h)
	if !snap.Vacant() || snap.TermVersion != 0 || snap.Breadcrumb != (election.Breadcrumb{}) || snap.Beat != 0 || len(snap.Controllers) != 0 {
		s.Errorf("an empty cluster reads as %+v", snap)
	}
	if all := s.everything(h); all != "" {
		s.Errorf("an empty cluster has the keys\n%s", all)
	}
	tr := h.Traits()
	if tr.Name == "" || tr.MinTTL <= 0 || tr.ExpirySlack < 0 || tr.LeaderGap < 0 {
		s.Errorf("traits %+v", tr)
	}
}

func (s *suite) race() {
	const hosts, rounds = 6, 5
	var all []Host
	for range hosts {
		all = append(all, s.open())
	}
	var term election.Term
	var previous string
	for round := range rounds {
		errs := make([]error, hosts)
		leases := make([]election.LeaseID, hosts)
		snaps := make([]election.Snapshot, hosts)
		var ready, running sync.WaitGroup
		ready.Add(hosts)
		for i, h := range all {
			running.Go(func() {
				ctx, cancel := context.WithTimeout(s.Context(), patience)
				defer cancel()
				snap, err := h.Read(ctx)
				if err == nil {
					leases[i], err = h.Grant(ctx, long)
				}
				ready.Done()
				ready.Wait() // all have read the same before any claims
				if errs[i], snaps[i] = err, snap; err == nil {
					errs[i] = h.Claim(ctx, claimOf(fmt.Sprintf("ctl-%d", i), snap, leases[i], false))
				}
			})
		}
		running.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				s.Fatalf("round %d: both ctl-%d and ctl-%d won", round, winner, i)
			case err == nil:
				winner = i
			case !errors.Is(err, election.ErrConflict):
				s.Errorf("round %d: ctl-%d: %v, want ErrConflict", round, i, err)
			}
		}
		if winner < 0 {
			s.Fatalf("round %d: nobody won: %v", round, errors.Join(errs...))
		}
		name := fmt.Sprintf("ctl-%d", winner)
		got := s.read(all[(winner+1)%hosts])
		if got.Active == nil || got.Active.Controller != name || got.ActiveLease != leases[winner] {
			s.Fatalf("round %d: %s won, but %+v with lease %q is active", round, name, got.Active, got.ActiveLease)
		}
		if got.Active.Term <= term || got.Breadcrumb.Term != got.Active.Term || snaps[winner].Breadcrumb.Controller != previous {
			s.Fatalf("round %d: term %d (counter %d) after %d", round, got.Active.Term, got.Breadcrumb.Term, term)
		}
		term, previous = got.Active.Term, name
		crumb := got.Breadcrumb
		crumb.Clean = true
		s.must(all[winner].Release(s.ctx(), election.Release{Lease: leases[winner], Breadcrumb: crumb}))
		for i, h := range all {
			if i != winner {
				s.must(h.Revoke(s.ctx(), leases[i]))
			}
		}
	}
}

func (s *suite) claimEffects() {
	h := s.open()
	passive := s.grant(h, long)
	s.must(h.Put(s.ctx(), election.Put{Key: "role/ctl-z", Value: []byte("passive"), Lease: passive}))
	s.must(h.Put(s.ctx(), election.Put{Key: "role/ctl-y", Value: []byte("passive"), Lease: passive}))
	s.must(h.Put(s.ctx(), election.Put{Key: "url", Value: []byte("http://left-over")}))
	snap := s.read(h)
	lease := s.grant(h, long)
	c := claimOf("ctl-a", snap, lease, true)
	c.Previous = "ctl-z"
	s.must(h.Claim(s.ctx(), c))
	after := s.read(h)
	if after.Active == nil || *after.Active != c.Active || after.ActiveLease != lease || after.Vacant() {
		s.Errorf("the role key is %+v with lease %q, want %+v with %q", after.Active, after.ActiveLease, c.Active, lease)
	}
	if after.Breadcrumb != c.Breadcrumb || after.TermVersion == 0 || after.Beat == 0 {
		s.Errorf("term record %+v version %d, beat %d; want %+v", after.Breadcrumb, after.TermVersion, after.Beat, c.Breadcrumb)
	}
	for key, want := range map[string]string{
		"active": string(c.Active.Encode()), "term": string(c.Breadcrumb.Encode()), "url": "", "role/ctl-z": "", "role/ctl-y": "passive", "role/ctl-a": "",
	} {
		if got := s.value(h, key); got != want {
			s.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	s.must(h.Revoke(s.ctx(), lease))
	for _, key := range []string{"active", "beat"} {
		if got := s.value(h, key); got != "" {
			s.Errorf("%s is %q after the lease has ended", key, got)
		}
	}
	if got := s.read(h); got.Breadcrumb != c.Breadcrumb {
		s.Errorf("the term record is %+v after the lease has ended, want %+v", got.Breadcrumb, c.Breadcrumb)
	}
}

func (s *suite) claimPreconditions() {
	a, b := s.open(), s.open()
	empty := s.read(a)
	holder, _ := s.reign(a, "ctl-a", long, true)
	held := s.read(a)
	lease := s.grant(b, long)
	refused := func(what string, c election.Claim, want ...error) {
		s.Helper()
		before := s.everything(a)
		err := b.Claim(s.ctx(), c)
		if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
			s.Errorf("%s: %v, want %v", what, err, errors.Join(want...))
		}
		if after := s.everything(a); after != before {
			s.Errorf("%s: a refused claim changed\n%sto\n%s", what, before, after)
		}
	}
	refused("the role key exists", claimOf("ctl-b", held, lease, true), election.ErrConflict)
	refused("the role key exists, and the counter has changed", claimOf("ctl-b", empty, lease, true), election.ErrConflict)
	silent := claimOf("ctl-b", held, lease, true)
	silent.Silent = held.Beat + 1
	refused("beat is another", silent, election.ErrConflict)
	silent.Silent, silent.TermVersion = held.Beat, empty.TermVersion
	refused("silent, but the counter moved", silent, election.ErrConflict)

	crumb := held.Breadcrumb
	crumb.Clean = true
	s.must(a.Release(s.ctx(), election.Release{Lease: holder, Breadcrumb: crumb}))
	refused("vacant, but the counter moved", claimOf("ctl-b", held, lease, true), election.ErrConflict)
	vacant := s.read(a)
	s.must(b.Revoke(s.ctx(), lease))
	refused("the lease is gone", claimOf("ctl-b", vacant, lease, true), election.ErrLost)
	stale := claimOf("ctl-b", held, lease, true)
	refused("the lease is gone and the counter moved", stale, election.ErrLost, election.ErrConflict)
	lease = s.grant(b, long)
	gone := claimOf("ctl-b", vacant, lease, true)
	gone.Silent = held.Beat
	refused("silent, but the beat is gone", gone, election.ErrConflict)
	s.must(b.Claim(s.ctx(), claimOf("ctl-b", vacant, lease, true)))
}

func (s *suite) claimBySilence() {
	a, b := s.open(), s.open()
	old, _ := s.reign(a, "ctl-a", long, true)
	serving := active("ctl-a", 1, election.StateServing)
	s.must(a.Publish(s.ctx(), old, serving))
	seen := s.read(b)
	lease := s.grant(b, long)
	c := claimOf("ctl-b", seen, lease, true)
	c.Silent = seen.Beat
	s.must(hold(s.ctx(), a, old, true))
	s.want("claim by silence after a beat", b.Claim(s.ctx(), c), election.ErrConflict)
	if seen = s.read(b); seen.Beat == c.Silent {
		s.Fatal("a beat did not change the version of the beat key")
	}
	for range 2 { // each of them does
		before := seen.Beat
		s.must(hold(s.ctx(), a, old, true))
		if seen = s.read(b); seen.Beat == before {
			s.Fatal("a later beat did not change the version of the beat key")
		}
	}
	s.must(hold(s.ctx(), a, old, false))
	if again := s.read(b); again.Beat != seen.Beat {
		s.Error("a renewal without Beat changed the beat key")
	}
	c.Silent = seen.Beat
	s.must(b.Claim(s.ctx(), c))
	s.deposed(a, old, "ctl-a", serving.Term)
	after := s.read(b)
	if after.ActiveLease != lease || after.Beat == 0 || after.Beat == seen.Beat {
		s.Errorf("lease %q, beat %d; want lease %q and a beat other than %d", after.ActiveLease, after.Beat, lease, seen.Beat)
	}
	for _, key := range []string{"url", "role/ctl-a"} {
		if got := s.value(b, key); got != "" {
			s.Errorf("%s is %q after the claim", key, got)
		}
	}
	s.must(a.Revoke(s.ctx(), old))
	after = s.read(b)
	if after.ActiveLease != lease || after.Beat == 0 {
		s.Error("the end of the old lease took a key of the new holder with it")
	}
	s.must(hold(s.ctx(), b, lease, true))
}

// deposed asserts that a former holder can do nothing.
func (s *suite) deposed(h Host, lease election.LeaseID, name string, term election.Term) {
	s.Helper()
	before := s.everything(h)
	s.want("renewal of a former holder", hold(s.ctx(), h, lease, false), election.ErrLost)
	s.want("beat of a former holder", hold(s.ctx(), h, lease, true), election.ErrLost)
	s.want("publication of a former holder", h.Publish(s.ctx(), lease, active(name, term, election.StateServing)), election.ErrLost)
	s.want("release of a former holder", h.Release(s.ctx(), election.Release{Lease: lease, Breadcrumb: election.Breadcrumb{Term: term, Controller: name, Clean: true}}), election.ErrLost)
	if after := s.everything(h); after != before {
		s.Errorf("a former holder changed\n%sto\n%s", before, after)
	}
}

func (s *suite) claimRemovesOldBeat() {
	a, b := s.open(), s.open()
	s.reign(a, "ctl-a", long, true)
	s.must(b.Delete(s.ctx(), "active", 0))
	if s.read(b).Beat == 0 {
		s.Fatal("there is no beat of the old holder")
	}
	s.reign(b, "ctl-b", long, false)
	if s.read(b).Beat != 0 {
		s.Error("the beat of the old holder outlived a claim without a beat: its silence would be taken for the new holder's")
	}
}

func (s *suite) publishAndRelease() {
	h, other := s.open(), s.open()
	passive := s.grant(h, long)
	s.must(h.Put(s.ctx(), election.Put{Key: "role/ctl-a", Value: []byte("passive"), Lease: passive}))
	lease, term := s.reign(h, "ctl-a", long, true)
	check := func(what string, want map[string]string) {
		s.Helper()
		for key, want := range want {
			if got := s.value(other, key); got != want {
				s.Errorf("%s: %s is %q, want %q", what, key, got, want)
			}
		}
	}
	for _, state := range []election.State{
		election.StateServing, election.StateStarting, election.StateServing, election.StateStopping, election.StateServing,
	} {
		a := active("ctl-a", term, state)
		s.must(h.Publish(s.ctx(), lease, a))
		want := map[string]string{"active": string(a.Encode()), "url": "", "role/ctl-a": ""}
		if state == election.StateServing {
			want["url"], want["role/ctl-a"] = a.URL, "active"
		}
		check(string(state), want)
		for _, beat := range []bool{false, true} {
			shown, err := h.Hold(s.ctx(), election.Hold{Lease: lease, Beat: beat})
			s.must(err)
			if string(shown.Value) != string(a.Encode()) || shown.Lease != lease || shown.Version == 0 {
				s.Errorf("%s: a renewal with beat %v shows %q with lease %q, version %d", state, beat, shown.Value, shown.Lease, shown.Version)
			}
		}
		if snap := s.read(other); snap.ActiveLease != lease || snap.Active == nil || *snap.Active != a {
			s.Errorf("%s: %+v with lease %q", state, snap.Active, snap.ActiveLease)
		}
	}
	s.must(h.Revoke(s.ctx(), passive)) // the holder loses nothing by it
	check("after the end of the passive's lease", map[string]string{"url": "http://ctl-a:8080", "role/ctl-a": "active"})

	crumb := election.Breadcrumb{Term: term, Clean: true, Controller: "ctl-a", Incarnation: "ctl-a-1", Validity: time.Second, Reason: "switchover (ana)"}
	before := s.read(h)
	s.must(h.Put(s.ctx(), election.Put{Key: "term", Value: []byte("50")})) // an operator raises the term
	s.want("release over a term key that has changed", h.Release(s.ctx(), election.Release{Lease: lease, Breadcrumb: crumb, TermVersion: before.TermVersion}),
		election.ErrConflict)
	if got := s.read(other); got.Breadcrumb.Term != 50 || got.ActiveLease != lease {
		s.Errorf("a refused release left %+v", got)
	}
	s.leaveBehind(other)
	s.must(h.Release(s.ctx(), election.Release{Lease: lease, Breadcrumb: crumb, TermVersion: s.read(h).TermVersion}))
	check("released", map[string]string{"active": "", "url": "", "role/ctl-a": "", "beat": "", "term": string(crumb.Encode())})
	s.want("repeated release", h.Release(s.ctx(), election.Release{Lease: lease, Breadcrumb: crumb}), election.ErrLost)
	s.want("renewal after the release", hold(s.ctx(), h, lease, false), election.ErrLost)
	s.want("prolongation after the release", h.Renew(s.ctx(), lease), election.ErrLost)
	snap := s.read(other)
	if !snap.Vacant() || snap.Breadcrumb != crumb {
		s.Errorf("after the release: %+v", snap)
	}

	// When the lease ends, its keys disappear.
	lease, term = s.reign(h, "ctl-a", long, true)
	s.must(h.Publish(s.ctx(), lease, active("ctl-a", term, election.StateServing)))
	s.must(h.Revoke(s.ctx(), lease))
	check("lease ended", map[string]string{"active": "", "url": "", "role/ctl-a": "", "beat": ""})
	if got := s.read(other).Breadcrumb; got.Clean || got.Term != term {
		s.Errorf("lease ended: %+v, want term %d, not clean", got, term)
	}
}

// offer makes name the heir of term's reign.
func (s *suite) offer(h Host, name string, term election.Term) (election.LeaseID, election.Heir) {
	s.Helper()
	lease := s.grant(h, long)
	heir := election.Heir{
		Controller: name, Incarnation: name + "-1", After: term, Lease: lease, URL: "http://" + name + ":8080", Validity: "1s",
	}
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		err := h.Put(s.ctx(), election.Put{Key: "heir", Value: heir.Encode(), Lease: lease, If: new(election.Version)})
		if err == nil || errors.Is(err, election.ErrConflict) || time.Since(begun) > patience {
			s.must(err) // for a while after the end of the last lease, Consul lets nobody bind the key
			return lease, heir
		}
	}
}

// handOverOf returns the hand-over from the holder ctl-a to the heir.
func handOverOf(snap election.Snapshot, heir election.Heir, beat bool) election.HandOver {
	term := heir.After + 1
	return election.HandOver{
		From: "ctl-a", Heir: snap.HeirVersion, TermVersion: snap.TermVersion, Lease: heir.Lease, Active: active(heir.Controller, term, election.StateStarting), Beat: beat,
		Breadcrumb: election.Breadcrumb{
			Term: term, Controller: heir.Controller, Incarnation: heir.Incarnation, Validity: time.Second, Reason: "a test",
		},
	}
}

func (s *suite) handOver() {
	a, b := s.open(), s.open()
	hints := b.Watch(s.ctx())
	s.hinted("start", hints)
	for _, beat := range []bool{false, true} {
		old, term := s.reign(a, "ctl-a", long, !beat)
		s.must(a.Publish(s.ctx(), old, active("ctl-a", term, election.StateServing)))
		lease, heir := s.offer(b, "ctl-b", term)
		s.want("a second heir", a.Put(s.ctx(), election.Put{Key: "heir", Value: heir.Encode(), Lease: lease, If: new(election.Version)}), election.ErrConflict)
		snap := s.read(a)
		if snap.Heir == nil || *snap.Heir != heir || snap.HeirVersion == 0 {
			s.Fatalf("the heir reads as %+v@%d, want %+v", snap.Heir, snap.HeirVersion, heir)
		}
		h := handOverOf(snap, heir, beat)
		wrong := h
		wrong.Heir++
		s.want("to another heir than was read", a.HandOver(s.ctx(), old, wrong), election.ErrConflict)
		wrong = h
		wrong.TermVersion++
		s.want("over another term key than was read", a.HandOver(s.ctx(), old, wrong), election.ErrConflict)
		if got := s.read(b); got.ActiveLease != old || got.Breadcrumb.Controller != "ctl-a" {
			s.Errorf("a refused hand-over left %+v", got)
		}

		s.leaveBehind(b)
		settle(hints)
		s.must(a.HandOver(s.ctx(), old, h))
		hint := s.hinted("hand-over", hints)
		for hint.Active != nil && hint.Active.Term < h.Active.Term { // of an earlier change, and late
			hint = s.hinted("hand-over", hints)
		}
		if hint.Active != nil && (*hint.Active != h.Active || hint.Lease != lease) {
			s.Errorf("the hint has %+v, lease %q", hint.Active, hint.Lease)
		}
		got := s.read(b)
		if got.ActiveLease != lease || got.Active == nil || *got.Active != h.Active || got.Breadcrumb != h.Breadcrumb || got.Heir != nil || got.HeirVersion != 0 || (got.Beat != 0) != beat {
			s.Errorf("after the hand-over: %+v, active %+v", got, got.Active)
		}
		for _, key := range []string{"url", "role/ctl-a", "heir"} {
			if v := s.value(b, key); v != "" {
				s.Errorf("%s is %q after the hand-over", key, v)
			}
		}
		s.want("repeated hand-over", a.HandOver(s.ctx(), old, h), election.ErrLost)
		s.want("release after the hand-over", a.Release(s.ctx(), election.Release{Lease: old, Breadcrumb: h.Breadcrumb}), election.ErrLost)
		s.want("renewal after the hand-over", hold(s.ctx(), a, old, false), election.ErrLost)
		s.want("prolongation after the hand-over", a.Renew(s.ctx(), old), election.ErrLost)
		s.must(hold(s.ctx(), b, lease, beat))
		s.must(b.Publish(s.ctx(), lease, active("ctl-b", h.Active.Term, election.StateServing)))
		s.must(b.Revoke(s.ctx(), lease))
	}

	s.handOverByNoHolder(a, b)

	// Nothing is handed to an heir that is gone, or after another claim.
	old, term := s.reign(a, "ctl-a", long, false)
	lease, heir := s.offer(b, "ctl-b", term)
	snap := s.read(a)
	s.must(b.Revoke(s.ctx(), lease))
	s.want("an heir that is gone", a.HandOver(s.ctx(), old, handOverOf(snap, heir, false)), election.ErrConflict)
	_, heir = s.offer(b, "ctl-b", term)
	stale := handOverOf(s.read(a), heir, false)
	s.must(a.Release(s.ctx(), election.Release{Lease: old, Breadcrumb: election.Breadcrumb{Term: term, Controller: "ctl-a", Clean: true}}))
	old, term = s.reign(a, "ctl-a", long, false)
	if v := s.value(b, "heir"); v != "" {
		s.Errorf("the heir key is %q after a claim", v)
	}
	s.want("an heir from before the claim", a.HandOver(s.ctx(), old, stale), election.ErrConflict)
	if got := s.read(b); got.ActiveLease != old || got.Breadcrumb.Term != term {
		s.Errorf("a refused hand-over left %+v", got)
	}
}

// leaseEndsMeanwhile: the store ends a lease at the moment at which a transaction arrives that needs
// it. The transaction is carried out as a whole or not at all, the answer tells which, and nothing
// that it bound to the lease is left.
func (s *suite) leaseEndsMeanwhile() {
	ender, ok := s.h.(Ender)
	if !ok {
		s.lacks("the end of a lease at a given moment")
	}
	a, b := s.open(), s.open()
	for round := range 4 {
		for name, begin := range map[string]func() (ends election.LeaseID, call func() error, done func(election.Snapshot) bool){
			"claim": func() (election.LeaseID, func() error, func(election.Snapshot) bool) {
				c := claimOf("ctl-a", s.read(a), s.grant(a, long), true)
				return c.Lease, func() error { return s.claimable(a, c) }, func(got election.Snapshot) bool { return got.Breadcrumb == c.Breadcrumb }
			},
			"publication": func() (election.LeaseID, func() error, func(election.Snapshot) bool) {
				lease, term := s.reignSoon(a)
				return lease, func() error { return a.Publish(s.ctx(), lease, active("ctl-a", term, election.StateServing)) }, nil
			},
			"release": func() (election.LeaseID, func() error, func(election.Snapshot) bool) {
				lease, term := s.reignSoon(a)
				crumb := election.Breadcrumb{Term: term, Controller: "ctl-a", Clean: true}
				return lease, func() error { return a.Release(s.ctx(), election.Release{Lease: lease, Breadcrumb: crumb}) },
					func(got election.Snapshot) bool { return got.Breadcrumb == crumb }
			},
			"hand-over": func() (election.LeaseID, func() error, func(election.Snapshot) bool) {
				lease, term := s.reignSoon(a)
				_, heir := s.offer(b, "ctl-b", term)
				h := handOverOf(s.read(a), heir, true)
				return lease, func() error { return a.HandOver(s.ctx(), lease, h) },
					func(got election.Snapshot) bool { return got.Breadcrumb == h.Breadcrumb && got.ActiveLease == h.Lease }
			},
			"hand-over to the lease": func() (election.LeaseID, func() error, func(election.Snapshot) bool) {
				lease, term := s.reignSoon(a)
				ends, heir := s.offer(b, "ctl-b", term)
				h := handOverOf(s.read(a), heir, true)
				return ends, func() error { return a.HandOver(s.ctx(), lease, h) },
					func(got election.Snapshot) bool { return got.Breadcrumb == h.Breadcrumb }
			},
		} {
			ends, call, done := begin()
			before := s.read(b)
			var both sync.WaitGroup
			var err error
			both.Go(func() { err = call() })
			if round%2 == 0 {
				runtime.Gosched() // the other order of the two
			}
			ender.EndLease(s.T, ends)
			both.Wait()
			s.judge(name, ends, before, err, done)
			s.clear(b)
		}
	}
}

// judge compares the outcome of a transaction with its answer, after a lease that it needed has
// ended.
func (s *suite) judge(name string, ended election.LeaseID, before election.Snapshot, err error, done func(election.Snapshot) bool) {
	s.Helper()
	h := s.open()
	got := s.read(h)
	switch {
	case err == nil && done != nil && !done(got):
		s.Errorf("%s: it was carried out, and the store shows %+v", name, got)
	case err != nil && !errors.Is(err, election.ErrLost) && !errors.Is(err, election.ErrConflict):
		s.Errorf("%s: %v, want nothing, ErrLost or ErrConflict", name, err)
	case err != nil && (got.TermVersion != before.TermVersion || got.ActiveLease != "" && got.ActiveLease != before.ActiveLease):
		s.Errorf("%s: it was refused (%v), and changed\n%+v to\n%+v", name, err, before, got)
	}
	list, listed := h.List(s.ctx(), "")
	s.must(listed)
	for _, e := range list {
		if e.Lease == ended {
			s.Errorf("%s: %s outlived its lease", name, e.Key)
		}
		if got.Vacant() && (e.Key == "url" || e.Key == "beat" || strings.HasPrefix(e.Key, "role/")) {
			s.Errorf("%s: %s outlived the reign", name, e.Key)
		}
	}
}

// reignSoon makes ctl-a the holder, as soon as the store lets anybody claim.
func (s *suite) reignSoon(h Host) (election.LeaseID, election.Term) {
	s.Helper()
	c := claimOf("ctl-a", s.read(h), s.grant(h, long), true)
	s.must(s.claimable(h, c))
	return c.Lease, c.Active.Term
}

// claimable repeats a claim while the store lets nobody claim, and returns its error.
func (s *suite) claimable(h Host, c election.Claim) error {
	hints := h.Watch(s.ctx())
	for {
		err := h.Claim(s.ctx(), c)
		if !errors.Is(err, election.ErrNotYet) {
			return err
		}
		s.hinted("the end of the time in which nobody may claim", hints)
	}
}

// clear removes what binds the role key, so that the next reign can begin.
func (s *suite) clear(h Host) {
	s.Helper()
	snap := s.read(h)
	if snap.ActiveLease != "" {
		s.must(h.Revoke(s.ctx(), snap.ActiveLease))
	}
	s.must(h.Delete(s.ctx(), "heir", 0))
}

// leaveBehind writes the holder's keys again, bound to no lease. They must be removed with the reign
// even so, and not only by the end of its lease.
func (s *suite) leaveBehind(h Host) {
	s.Helper()
	for _, key := range []string{"url", "beat", "role/ctl-a"} {
		s.must(h.Put(s.ctx(), election.Put{Key: key, Value: []byte("left behind")}))
	}
}

// handOverByNoHolder: a controller whose role key is gone, or another's, hands nothing over, even if
// nobody has claimed and the heir still offers itself.
func (s *suite) handOverByNoHolder(a, b Host) {
	s.Helper()
	for name, lose := range map[string]func(){
		"removed":     func() { s.must(b.Delete(s.ctx(), "active", 0)) },
		"overwritten": func() { s.must(b.Put(s.ctx(), election.Put{Key: "active", Value: []byte("mine")})) },
	} {
		old, term := s.reign(a, "ctl-a", long, true)
		lease, heir := s.offer(b, "ctl-b", term)
		h := handOverOf(s.read(a), heir, true)
		lose()
		before := s.everything(b)
		s.want("a hand-over with the role key "+name, a.HandOver(s.ctx(), old, h), election.ErrLost)
		if after := s.everything(b); after != before {
			s.Errorf("a hand-over with the role key %s changed\n%sto\n%s", name, before, after)
		}
		s.must(b.Revoke(s.ctx(), lease))
		s.must(b.Delete(s.ctx(), "active", 0))
		s.must(a.Revoke(s.ctx(), old))
	}
}

func (s *suite) strangerOverwrites() {
	a, b := s.open(), s.open()
	lease, term := s.reign(a, "ctl-a", long, true)
	s.must(b.Put(s.ctx(), election.Put{Key: "active", Value: active("mallory", 99, election.StateServing).Encode()}))
	s.deposed(a, lease, "ctl-a", term)
	snap := s.read(b)
	if snap.ActiveLease != "" || snap.Active == nil || snap.Active.Controller != "mallory" {
		s.Errorf("a stranger's role key reads as %+v with lease %q", snap.Active, snap.ActiveLease)
	}
	fresh := s.grant(b, long)
	s.want("claim over a stranger's key", b.Claim(s.ctx(), claimOf("ctl-b", snap, fresh, false)), election.ErrConflict)
	s.want("removal of an older version", b.Delete(s.ctx(), "active", snap.ActiveVersion+1), election.ErrConflict)
	s.must(b.Delete(s.ctx(), "active", snap.ActiveVersion))
	s.must(b.Claim(s.ctx(), claimOf("ctl-b", s.read(b), fresh, false)))
}

func (s *suite) strangerDeletes() {
	a, b := s.open(), s.open()
	lease, term := s.reign(a, "ctl-a", long, true)
	s.must(b.Delete(s.ctx(), "active", 0))
	s.deposed(a, lease, "ctl-a", term)
	if snap := s.read(b); !snap.Vacant() || snap.Breadcrumb.Clean {
		s.Errorf("after a stranger's deletion: %+v", snap)
	}
	s.reign(b, "ctl-b", long, true)
	s.deposed(a, lease, "ctl-a", term)
}

// strangerByOtherMeans allows for stores in which a plain write does not unbind a key. Whatever the
// store does, the holder and the candidates must agree on it, and the holder must see what the
// stranger wrote.
func (s *suite) strangerByOtherMeans() {
	stranger, ok := s.h.(Stranger)
	if !ok {
		s.lacks("a write with the store's own tools")
	}
	a, b := s.open(), s.open()
	lease, term := s.reign(a, "ctl-a", long, true)
	stranger.Overwrite(s.T, "active", "mine")
	shown, err := a.Hold(s.ctx(), election.Hold{Lease: lease, Beat: true})
	if err == nil && string(shown.Value) != "mine" {
		s.Errorf("a renewal shows the role key as %q, and a stranger wrote mine", shown.Value)
	}
	snap := s.read(b)
	if snap.ActiveBad == nil || snap.Active != nil || snap.Vacant() {
		s.Errorf("an unreadable role key reads as %+v", snap)
	}
	if held := snap.ActiveLease == lease; held != (err == nil) || (err != nil && !errors.Is(err, election.ErrLost)) {
		s.Errorf("the role key is bound to %q, and renewal of %q answers %v", snap.ActiveLease, lease, err)
	}
	stranger.Remove(s.T, "active")
	s.deposed(a, lease, "ctl-a", term)
}

// strangerKeepsTheLease: the lease still identifies the holder, and the next renewal shows that the
// value is not the holder's, who can repair it.
func (s *suite) strangerKeepsTheLease() {
	stranger, ok := s.h.(LeaseKeeper)
	if !ok {
		s.lacks("a write that leaves a key bound to its lease")
	}
	a, b := s.open(), s.open()
	lease, term := s.reign(a, "ctl-a", long, true)
	ours := active("ctl-a", term, election.StateServing)
	s.must(a.Publish(s.ctx(), lease, ours))
	for _, beat := range []bool{true, false} {
		for _, forged := range []string{string(active("mallory", 99, election.StateServing).Encode()), "not a record", ""} {
			stranger.OverwriteKept(s.T, "active", forged)
			stranger.OverwriteKept(s.T, "url", "http://mallory")
			if shown, err := a.Hold(s.ctx(), election.Hold{Lease: lease, Beat: beat}); err != nil || string(shown.Value) != forged || shown.Lease != lease {
				s.Errorf("a renewal after a stranger wrote %q shows %q with lease %q, %v", forged, shown.Value, shown.Lease, err)
			}
			s.must(a.Publish(s.ctx(), lease, ours))
			snap := s.read(b)
			if snap.ActiveBad != nil || snap.Active == nil || string(snap.Active.Encode()) != string(ours.Encode()) || snap.ActiveLease != lease {
				s.Errorf("after the holder's repair: %+v with lease %q, %v", snap.Active, snap.ActiveLease, snap.ActiveBad)
			}
			if url := s.value(b, "url"); url != ours.URL {
				s.Errorf("after the holder's repair the url is %q, want %q", url, ours.URL)
			}
		}
	}
	s.must(a.Revoke(s.ctx(), lease))
	if snap := s.read(b); !snap.Vacant() {
		s.Errorf("the role key outlived its lease: %+v", snap)
	}
}

// bindsAnew: the lease of a holder has expired, and nobody has claimed. The holder binds the role
// key to a new lease, for the same term, by comparing the term record. A store in which nobody may
// claim for a while reports that nobody was first.
func (s *suite) bindsAnew() {
	a, b := s.open(), s.open()
	_, term, _ := s.reignBriefly(a, "ctl-a", a.Traits().MinTTL)
	var snap election.Snapshot
	s.eventually("the end of a lease that nobody renews", func(context.Context) error {
		if snap = s.read(b); !snap.Vacant() {
			return errors.New("it still exists")
		}
		return nil
	})
	claim := claimOf("ctl-a", snap, s.grant(a, long), true)
	claim.Active.Term, claim.Breadcrumb.Term = term, term
	s.eventually("the role key is bound to a new lease", func(ctx context.Context) error {
		err := a.Claim(ctx, claim)
		if errors.Is(err, election.ErrConflict) && !errors.Is(err, election.ErrNotYet) {
			s.Fatalf("nobody has claimed, and the holder's claim is answered %v", err)
		}
		return err
	})
	if got := s.read(b); got.ActiveLease != claim.Lease || got.Active == nil || got.Active.Term != term || got.Breadcrumb.Term != term {
		s.Errorf("bound to a new lease: %+v", got)
	}
	s.must(hold(s.ctx(), a, claim.Lease, true))
	// Another was first: the term record is not the holder's.
	s.must(a.Revoke(s.ctx(), claim.Lease))
	_, _ = s.reign(b, "ctl-b", long, true)
	claim.Lease = s.grant(a, long)
	if err := a.Claim(s.ctx(), claim); !errors.Is(err, election.ErrConflict) || errors.Is(err, election.ErrNotYet) {
		s.Errorf("a claim after somebody else's: %v", err)
	}
}

// forgedTerms: a term above every possible one is invalid, wherever it is written.
func (s *suite) forgedTerms() {
	h, agent := s.open(), s.open()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	s.must(h.Put(s.ctx(), election.Put{Key: "active", Value: active("ctl-a", 3, election.StateServing).Encode()}))
	sightings := agent.Follow(ctx)
	s.sight("term 3", sightings, func(g election.Sighting) bool { return g.Active != nil && g.Active.Term == 3 && g.Err == nil })
	for _, forged := range []uint64{1<<53 + 1, 1<<62 + 1, 1<<63 - 2, 1<<64 - 1} {
		s.must(h.Put(s.ctx(), election.Put{Key: "term", Value: fmt.Appendf(nil, "%d held controller=ctl-x incarnation=i validity=4s", forged)}))
		s.must(h.Put(s.ctx(), election.Put{Key: "active", Value: fmt.Appendf(nil, `{"controller":"ctl-x","term":%d,"state":"serving","url":"http://x:1"}`, forged)}))
		if snap := s.read(h); snap.ActiveBad == nil || snap.Active != nil || snap.TermBad == nil || snap.Breadcrumb.Term != 0 {
			s.Errorf("term %d reads as role key %+v, %v, and term record %+v, %v", forged, snap.Active, snap.ActiveBad, snap.Breadcrumb, snap.TermBad)
		}
		s.sight("a forged role key, with the last active", sightings, func(g election.Sighting) bool {
			return g.Err != nil && g.Active != nil && g.Active.Term == 3
		})
		s.must(h.Put(s.ctx(), election.Put{Key: "active", Value: active("ctl-a", 3, election.StateServing).Encode()}))
		s.sight("term 3 again", sightings, func(g election.Sighting) bool { return g.Active != nil && g.Active.Term == 3 && g.Err == nil })
	}
}

// takesNoWrites: a store that answers reads and refuses writes is recognised without changing
// anything, also by a passive.
func (s *suite) takesNoWrites() {
	h := s.open()
	lease, term := s.reign(h, "ctl-a", long, false)
	before := s.read(h)
	s.must(election.Writable(s.ctx(), h, "ctl-b"))
	if after := s.read(h); after.ActiveVersion != before.ActiveVersion || s.value(h, "controllers/ctl-b") != "" {
		s.Errorf("asking whether the store takes writes left %+v", after)
	}
	filler, ok := s.h.(Filler)
	if !ok {
		s.lacks("a way to make the store refuse writes")
	}
	filler.Fill(s.T)
	s.want("whether it takes writes", election.Writable(s.ctx(), h, "ctl-b"), election.ErrReadOnly)
	s.want("a write", h.Put(s.ctx(), election.Put{Key: "pause", Value: []byte("{}")}), election.ErrReadOnly)
	s.want("a release", h.Release(s.ctx(), election.Release{Lease: lease, Breadcrumb: election.Breadcrumb{Term: term, Controller: "ctl-a", Clean: true}}), election.ErrReadOnly)
	s.must(hold(s.ctx(), h, lease, false)) // a renewal without a beat still works
	if snap := s.read(h); snap.ActiveLease != lease {
		s.Errorf("read while no writes are taken: %+v", snap)
	}
	filler.Empty(s.T)
	s.must(election.Writable(s.ctx(), h, "ctl-b"))
	s.must(h.Release(s.ctx(), election.Release{Lease: lease, Breadcrumb: election.Breadcrumb{Term: term, Controller: "ctl-a", Clean: true}}))
}

func (s *suite) counterRewound() {
	h := s.open()
	for range 4 {
		lease, term := s.reign(h, "ctl-a", long, false)
		s.must(h.Release(s.ctx(), election.Release{Lease: lease, Breadcrumb: election.Breadcrumb{Term: term, Controller: "ctl-a", Clean: true}}))
	}
	before := s.read(h)
	s.must(h.Put(s.ctx(), election.Put{Key: "term", Value: []byte("2")}))
	after := s.read(h)
	if after.Breadcrumb.Term != 2 || after.Breadcrumb.Clean || after.TermVersion == before.TermVersion {
		s.Errorf("a counter set to 2 reads as %+v version %d (was %d)", after.Breadcrumb, after.TermVersion, before.TermVersion)
	}
	lease := s.grant(h, long)
	s.want("claim on what was read before", h.Claim(s.ctx(), claimOf("ctl-a", before, lease, false)), election.ErrConflict)
	c := claimOf("ctl-a", after, lease, false)
	c.Active.Term, c.Breadcrumb.Term = 9, 9 // a floor that the candidate knows
	s.must(h.Claim(s.ctx(), c))
	if got := s.read(h); got.Breadcrumb.Term != 9 || got.Active == nil || got.Active.Term != 9 {
		s.Errorf("after a claim of term 9: %+v", got)
	}
}

func (s *suite) unreadable() {
	h := s.open()
	put := func(key, value string) {
		s.Helper()
		s.must(h.Put(s.ctx(), election.Put{Key: key, Value: []byte(value)}))
	}
	put("active", "{")
	put("controllers/ctl-b", string(election.Controller{Name: "ctl-b", State: election.StateReady}.Encode()))
	put("controllers/ctl-a", string(election.Controller{Name: "ctl-a", State: election.StateUnfit}.Encode()))
	put("controllers/bad", "not json")
	put("controllers/thief", string(election.Controller{Name: "ctl-a"}.Encode()))
	put("request", "[]")
	put("pause", "yes please")
	put("standby", "[]")
	put("dead", `{"controller":"ctl-a"}`)
	snap := s.read(h)
	if snap.ActiveBad == nil || snap.Active != nil || snap.Vacant() {
		s.Errorf("unreadable role key: %+v", snap)
	}
	names := []string{}
	for _, c := range snap.Controllers {
		names = append(names, c.Name+" "+string(c.State))
	}
	if want := []string{"ctl-a unfit", "ctl-b ready"}; !slices.Equal(names, want) {
		s.Errorf("controllers %q, want %q", names, want)
	}
	named := func(err error, key string, version election.Version) bool {
		return err != nil && strings.Contains(err.Error(), fmt.Sprintf("the %s key, version %d", key, version))
	}
	if snap.Request != nil || snap.RequestVer == 0 || !named(snap.RequestBad, "request", snap.RequestVer) {
		s.Errorf("unreadable request: %+v version %d, %v; want nil, its version, and both in the words", snap.Request, snap.RequestVer, snap.RequestBad)
	}
	if snap.Pause == nil || snap.PauseVer == 0 || !named(snap.PauseBad, "pause", snap.PauseVer) {
		s.Errorf("unreadable pause: %+v version %d, %v; want a pause, its version, and both in the words", snap.Pause, snap.PauseVer, snap.PauseBad)
	}
	if len(snap.Standbys) != 0 || snap.StandbyVer == 0 || !named(snap.StandbyBad, "standby", snap.StandbyVer) {
		s.Errorf("unreadable standby: %+v version %d, %v; want nobody, its version, and both in the words", snap.Standbys, snap.StandbyVer, snap.StandbyBad)
	}
	if snap.Dead != nil || snap.DeadBad == nil || !strings.Contains(snap.DeadBad.Error(), "the dead key, version ") {
		s.Errorf("unreadable certificate: %+v, %v; want none, and its version in the words", snap.Dead, snap.DeadBad)
	}
	s.want("removal of another pause than was read", h.Delete(s.ctx(), "pause", snap.PauseVer+1), election.ErrConflict)
	s.must(h.Delete(s.ctx(), "pause", snap.PauseVer))
	s.must(h.Delete(s.ctx(), "request", snap.RequestVer))
	if snap = s.read(h); snap.Pause != nil || snap.PauseBad != nil || snap.RequestBad != nil || snap.RequestVer != 0 {
		s.Errorf("after both were removed: pause %+v (%v), request version %d (%v)", snap.Pause, snap.PauseBad, snap.RequestVer, snap.RequestBad)
	}
	put("request", string(election.Request{ID: "r1", Op: "switchover", To: "ctl-b", By: "ana", Term: 3, For: time.Second}.Encode()))
	put("pause", `{"by":"ana","reason":"works"}`)
	put("standby", `{"ctl-b":{"by":"ana","ban":true}}`)
	put("dead", `{"controller":"ctl-a","term":3,"by":"ana","term_version":7}`)
	snap = s.read(h)
	if snap.Request == nil || snap.Request.To != "ctl-b" || snap.Pause == nil || snap.Pause.By != "ana" {
		s.Errorf("request %+v, pause %+v", snap.Request, snap.Pause)
	}
	if d := snap.Dead; d == nil || d.Controller != "ctl-a" || d.Term != 3 || d.Record != 7 || snap.DeadBad != nil {
		s.Errorf("certificate %+v, %v", d, snap.DeadBad)
	}
	if by := snap.Standbys["ctl-b"]; len(snap.Standbys) != 1 || by.By != "ana" || !by.Ban || snap.StandbyBad != nil {
		s.Errorf("standby %+v, %v", snap.Standbys, snap.StandbyBad)
	}
	put("term", "seven")
	if snap = s.read(h); snap.TermBad == nil || snap.TermVersion == 0 || snap.Breadcrumb != (election.Breadcrumb{}) {
		s.Errorf("an unreadable term reads as %+v version %d, %v: the next claim would start again at 1", snap.Breadcrumb, snap.TermVersion, snap.TermBad)
	}
}

func (s *suite) holderKilled() {
	h, other := s.open(), s.open()
	// Twice, so that a lease of the shortest ttl is too short.
	lease, term, ttl, sent := s.renewedOnce(h, 2*max(h.Traits().MinTTL, time.Second))
	acked := time.Now()
	seen, slowest := acked, time.Duration(0) // when it was last asked for, and was there; the slowest read
	for {
		asked := time.Now()
		snap := s.read(other)
		slowest = max(slowest, time.Since(asked))
		if !snap.Vacant() {
			if time.Since(acked) > ttl+h.Traits().ExpirySlack+patience {
				s.Fatalf("the lease of a dead holder lives for more than %v", time.Since(acked))
			}
			seen = asked
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if lived := time.Since(sent); lived < ttl {
			s.Errorf("the lease ended %v after its last renewal was sent, earlier than its ttl of %v", lived, ttl)
		}
		lived, bound := seen.Sub(acked), ttl+h.Traits().ExpirySlack
		s.Logf("ttl %v, slack %v: the lease ended %v after the last renewal was acknowledged", ttl, h.Traits().ExpirySlack, lived)
		// An overloaded machine may add to it. Only a multiple shows a wrong trait.
		if lived > bound+max(bound, 3*time.Second)+slowest {
			s.Errorf("the lease ended %v after the last renewal was acknowledged; the store guarantees %v", lived, bound)
		}
		break
	}
	for _, key := range []string{"url", "beat", "role/ctl-a"} {
		if got := s.value(other, key); got != "" {
			s.Errorf("%s is %q after the lease has ended", key, got)
		}
	}
	s.want("renewal of a lease that has ended", h.Renew(s.ctx(), lease), election.ErrLost)
	if got := s.read(other).Breadcrumb; got.Term != term || got.Clean {
		s.Errorf("term record %+v, want term %d, not clean", got, term)
	}
}

// renewedOnce makes ctl-a serve, and renews its lease after half of its ttl. It returns when the
// renewal was sent. If the machine was too slow for that, the lease is longer.
func (s *suite) renewedOnce(h Host, shortest time.Duration) (lease election.LeaseID, term election.Term, ttl time.Duration, sent time.Time) {
	s.Helper()
	for ttl = shortest; ; ttl *= 2 {
		begun := time.Now()
		lease, term, ttl = s.reignBriefly(h, "ctl-a", ttl)
		err := h.Publish(s.ctx(), lease, active("ctl-a", term, election.StateServing))
		if err == nil {
			time.Sleep(ttl / 2)
			sent = time.Now()
			err = hold(s.ctx(), h, lease, true)
		}
		if err == nil {
			return lease, term, ttl, sent
		}
		if took := time.Since(begun); !errors.Is(err, election.ErrLost) || took < ttl || ttl > patience {
			s.Fatalf("a lease of %v was lost after %v: %v", ttl, took, err)
		}
	}
}

func (s *suite) renewalKeeps() {
	h := s.open()
	ttl := max(h.Traits().MinTTL, 2*time.Second)
	lease, _, ttl := s.reignBriefly(h, "ctl-a", ttl)
	last := time.Now()
	for end := time.Now().Add(2*ttl + h.Traits().ExpirySlack); time.Now().Before(end); {
		time.Sleep(ttl / 8)
		sent := time.Now()
		if err := hold(s.ctx(), h, lease, false); err != nil {
			if gap := time.Since(last); gap > ttl/2 {
				s.Skipf("NOT TESTED: this machine let %v pass between two renewals of a lease of %v", gap, ttl)
			}
			s.Fatalf("the lease was lost although it was renewed every %v: %v", ttl/8, err)
		}
		last = sent
	}
	if snap := s.read(h); snap.ActiveLease != lease {
		s.Errorf("the role key is bound to %q, want %q", snap.ActiveLease, lease)
	}
}

func (s *suite) revoke() {
	h := s.open()
	lease := s.grant(h, long)
	other := s.grant(h, long)
	if lease == other {
		s.Fatal("two leases have the same id")
	}
	s.must(h.Put(s.ctx(), election.Put{Key: "controllers/ctl-a", Value: []byte("a"), Lease: lease}))
	s.must(h.Put(s.ctx(), election.Put{Key: "controllers/ctl-b", Value: []byte("b"), Lease: other}))
	s.must(h.Renew(s.ctx(), lease))
	s.want("renewal that holds nothing", hold(s.ctx(), h, lease, false), election.ErrLost)
	s.must(h.Revoke(s.ctx(), lease))
	if got := s.value(h, "controllers/ctl-a"); got != "" {
		s.Errorf("a key outlived its lease: %q", got)
	}
	if got := s.value(h, "controllers/ctl-b"); got != "b" {
		s.Errorf("a key of another lease is %q", got)
	}
	s.must(h.Revoke(s.ctx(), lease))
	s.want("renewal after the end", h.Renew(s.ctx(), lease), election.ErrLost)
	s.want("write with a lease that has ended", h.Put(s.ctx(), election.Put{Key: "controllers/ctl-a", Value: []byte("a"), Lease: lease}), election.ErrLost)
	if got := s.value(h, "controllers/ctl-a"); got != "" {
		s.Errorf("a write with a lease that has ended was carried out: %q", got)
	}
}

func (s *suite) keys() {
	h := s.open()
	at := func(v election.Version) *election.Version { return &v }
	e, err := h.Get(s.ctx(), "settings")
	s.must(err)
	if e.Version != 0 || len(e.Value) != 0 {
		s.Errorf("an absent key reads as %+v", e)
	}
	s.must(h.Delete(s.ctx(), "settings", 0))
	s.must(h.Delete(s.ctx(), "settings", 42))
	s.want("swap of an absent key", h.Put(s.ctx(), election.Put{Key: "settings", Value: []byte("1"), If: at(7)}), election.ErrConflict)
	s.must(h.Put(s.ctx(), election.Put{Key: "settings", Value: []byte("1"), If: at(0)}))
	s.want("creation of an existing key", h.Put(s.ctx(), election.Put{Key: "settings", Value: []byte("2"), If: at(0)}), election.ErrConflict)
	e, err = h.Get(s.ctx(), "settings")
	s.must(err)
	if e.Key != "settings" || string(e.Value) != "1" || e.Version == 0 || e.Lease != "" {
		s.Errorf("settings reads as %+v", e)
	}
	s.must(h.Put(s.ctx(), election.Put{Key: "settings", Value: []byte("2"), If: &e.Version}))
	s.want("swap of an old version", h.Put(s.ctx(), election.Put{Key: "settings", Value: []byte("3"), If: &e.Version}), election.ErrConflict)
	s.want("deletion of an old version", h.Delete(s.ctx(), "settings", e.Version), election.ErrConflict)
	e, err = h.Get(s.ctx(), "settings")
	s.must(err)
	if string(e.Value) != "2" {
		s.Errorf("settings is %q, want 2", e.Value)
	}
	s.must(h.Delete(s.ctx(), "settings", e.Version))
	if got := s.value(h, "settings"); got != "" {
		s.Errorf("settings is %q after its deletion", got)
	}
	// An empty value is not absence, and after a deletion old versions do not return.
	s.must(h.Put(s.ctx(), election.Put{Key: "settings", Value: []byte{}}))
	again, err := h.Get(s.ctx(), "settings")
	s.must(err)
	if again.Version == 0 || again.Version == e.Version || len(again.Value) != 0 {
		s.Errorf("an empty value reads as %+v", again)
	}

	for _, key := range []string{"history/0000000010", "history/0000000002", "historyx", "agents/a", "history/0000000001"} {
		s.must(h.Put(s.ctx(), election.Put{Key: key, Value: []byte(key)}))
	}
	list, err := h.List(s.ctx(), "history/")
	s.must(err)
	var got []string
	for _, e := range list {
		if string(e.Value) != e.Key || e.Version == 0 {
			s.Errorf("%+v", e)
		}
		got = append(got, e.Key)
	}
	if want := []string{"history/0000000001", "history/0000000002", "history/0000000010"}; !slices.Equal(got, want) {
		s.Errorf("list %q, want %q", got, want)
	}
	if list, err = h.List(s.ctx(), "nothing/"); err != nil || len(list) != 0 {
		s.Errorf("list of nothing: %v, %v", list, err)
	}

	// A key is bound by its last write.
	one, two := s.grant(h, long), s.grant(h, long)
	s.must(h.Put(s.ctx(), election.Put{Key: "agents/b", Value: []byte("1"), Lease: one}))
	if e, err = h.Get(s.ctx(), "agents/b"); err != nil || e.Lease != one {
		s.Errorf("bound to %q (%v), want %q", e.Lease, err, one)
	}
	s.must(h.Put(s.ctx(), election.Put{Key: "agents/b", Value: []byte("2"), Lease: two}))
	s.must(h.Revoke(s.ctx(), one))
	if e, err = h.Get(s.ctx(), "agents/b"); err != nil || string(e.Value) != "2" || e.Lease != two {
		s.Errorf("after the end of the first lease: %+v, %v", e, err)
	}
	s.must(h.Put(s.ctx(), election.Put{Key: "agents/b", Value: []byte("3")}))
	s.must(h.Revoke(s.ctx(), two))
	if e, err = h.Get(s.ctx(), "agents/b"); err != nil || string(e.Value) != "3" || e.Lease != "" {
		s.Errorf("after a write without a lease: %+v, %v", e, err)
	}
}

// hinted waits for a hint.
func (s *suite) hinted(what string, hints <-chan election.Hint) election.Hint {
	s.Helper()
	select {
	case h, open := <-hints:
		if !open {
			s.Fatalf("%s: the watch has ended", what)
		}
		return h
	case <-time.After(patience):
		s.Fatalf("%s: no hint within %v", what, patience)
	}
	return election.Hint{}
}

// settle drains hints until none has come for a while.
func settle(hints <-chan election.Hint) {
	for {
		select {
		case <-hints:
		case <-time.After(300 * time.Millisecond):
			return
		}
	}
}

func (s *suite) watch() {
	a, b := s.open(), s.open()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	hints := a.Watch(ctx)
	if cap(hints) != 1 {
		s.Errorf("the buffer is %d, want 1", cap(hints))
	}
	// The first change may race with the start of the watch, so a hint is due at the start too.
	s.hinted("start", hints)
	settle(hints)
	var lease election.LeaseID
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"claim", func() { lease, _ = s.reign(b, "ctl-b", long, true) }},
		{"beat", func() { s.must(hold(s.ctx(), b, lease, true)) }},
		{"publish", func() { s.must(b.Publish(s.ctx(), lease, active("ctl-b", 1, election.StateServing))) }},
		{"controller", func() { s.must(b.Put(s.ctx(), election.Put{Key: "controllers/ctl-b", Value: []byte("{}")})) }},
		{"request", func() { s.must(b.Put(s.ctx(), election.Put{Key: "request", Value: []byte("{}")})) }},
		{"pause", func() { s.must(b.Put(s.ctx(), election.Put{Key: "pause", Value: []byte("{}")})) }},
		{"term", func() { s.must(b.Put(s.ctx(), election.Put{Key: "term", Value: []byte("50")})) }},
		{"heir", func() { s.offer(b, "ctl-c", 1) }},
		{"standby", func() { s.must(b.Put(s.ctx(), election.Put{Key: "standby", Value: []byte("{}")})) }},
		{"dead", func() { s.must(b.Put(s.ctx(), election.Put{Key: "dead", Value: []byte("{}")})) }},
		{"resume", func() { s.must(b.Delete(s.ctx(), "pause", 0)) }},
		{"controller gone", func() { s.must(b.Delete(s.ctx(), "controllers/ctl-b", 0)) }},
		{"release", func() {
			s.must(b.Release(s.ctx(), election.Release{Lease: lease, Breadcrumb: election.Breadcrumb{Term: 1, Controller: "ctl-b", Clean: true}}))
		}},
		{"lease end", func() { lease, _ = s.reign(b, "ctl-b", long, false); settle(hints); s.must(b.Revoke(s.ctx(), lease)) }},
	} {
		settle(hints)
		step.do()
		s.hinted(step.name, hints)
	}
	cancel()
	s.closed("watch", func() bool { _, open := <-hints; return open })
}

// closed waits until receive reports false.
func (s *suite) closed(what string, receive func() bool) {
	s.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for receive() {
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		s.Errorf("%s: the channel is still open %v after its context has ended", what, patience)
	}
}

// sight receives sightings until ok.
func (s *suite) sight(what string, sightings <-chan election.Sighting, ok func(election.Sighting) bool) election.Sighting {
	s.Helper()
	var seen []string
	for timeout := time.After(patience + 20*time.Second); ; {
		select {
		case got, open := <-sightings:
			if !open {
				s.Fatalf("%s: the channel was closed", what)
			}
			if got.At.IsZero() {
				s.Errorf("%s: a sighting without a time: %+v", what, got)
			}
			if ok(got) {
				return got
			}
			seen = append(seen, fmt.Sprintf("{%+v %v}", got.Active, got.Err))
		case <-timeout:
			s.Fatalf("%s: not seen; seen instead: %s", what, strings.Join(seen, ", "))
		}
	}
}

func (s *suite) follow() {
	a, agent := s.open(), s.open()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	sightings := agent.Follow(ctx)
	s.sight("nobody", sightings, func(g election.Sighting) bool { return g.Active == nil && g.Err == nil })
	lease, term := s.reign(a, "ctl-a", long, true)
	s.sight("starting", sightings, func(g election.Sighting) bool {
		return g.Err == nil && g.Active != nil && *g.Active == active("ctl-a", term, election.StateStarting)
	})
	const n = 100
	number := func(i int) election.Active {
		r := active("ctl-a", term, election.StateServing)
		r.Reason = strconv.Itoa(i)
		return r
	}
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := 1; i <= n; i++ {
			if err := a.Publish(ctx, lease, number(i)); err != nil {
				s.Errorf("cannot publish: %v", err)
				return
			}
		}
	})
	last := 0
	s.sight("the last of many", sightings, func(g election.Sighting) bool {
		i := 0
		if g.Active != nil && g.Active.Reason != "a test" {
			i, _ = strconv.Atoi(g.Active.Reason)
		}
		if i < last {
			s.Errorf("number %d was seen after number %d", i, last)
		}
		last = max(last, i)
		return last == n
	})
	writing.Wait()
	// A later follower begins with the current state.
	late := agent.Follow(ctx)
	first := s.sight("the first sighting of a later follower", late, func(election.Sighting) bool { return true })
	if first.Active == nil || *first.Active != number(n) {
		s.Errorf("the first sighting of a later follower is %+v, want number %d", first.Active, n)
	}
	s.must(a.Release(s.ctx(), election.Release{Lease: lease, Breadcrumb: election.Breadcrumb{Term: term, Controller: "ctl-a", Clean: true}}))
	s.sight("released", sightings, func(g election.Sighting) bool { return g.Active == nil && g.Err == nil })

	// The adapter passes on a lower term like any other.
	s.must(a.Put(s.ctx(), election.Put{Key: "active", Value: active("ctl-c", 7, election.StateServing).Encode()}))
	s.sight("term 7", sightings, func(g election.Sighting) bool { return g.Active != nil && g.Active.Term == 7 })
	s.must(a.Put(s.ctx(), election.Put{Key: "active", Value: active("ctl-c", 3, election.StateServing).Encode()}))
	s.sight("term 3", sightings, func(g election.Sighting) bool { return g.Active != nil && g.Active.Term == 3 })
	cancel()
	s.closed("follow", func() bool { _, open := <-sightings; return open })
	s.closed("follow", func() bool { _, open := <-late; return open })
}

func (s *suite) followUnreadable() {
	a, agent := s.open(), s.open()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	s.must(a.Put(s.ctx(), election.Put{Key: "active", Value: active("ctl-a", 3, election.StateServing).Encode()}))
	sightings := agent.Follow(ctx)
	s.sight("term 3", sightings, func(g election.Sighting) bool { return g.Active != nil && g.Active.Term == 3 && g.Err == nil })
	s.must(a.Put(s.ctx(), election.Put{Key: "active", Value: []byte("{}")}))
	s.sight("an unreadable role key, with the last active", sightings, func(g election.Sighting) bool {
		return g.Err != nil && g.Active != nil && g.Active.Term == 3
	})
	s.must(a.Put(s.ctx(), election.Put{Key: "active", Value: active("ctl-a", 4, election.StateServing).Encode()}))
	s.sight("term 4", sightings, func(g election.Sighting) bool { return g.Active != nil && g.Active.Term == 4 && g.Err == nil })
}

// calls returns all calls of a backend, with harmless arguments.
func calls(h Host, lease election.LeaseID) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Read":       func(ctx context.Context) error { _, err := h.Read(ctx); return err },
		"Grant":      func(ctx context.Context) error { _, err := h.Grant(ctx, long); return err },
		"Renew":      func(ctx context.Context) error { return h.Renew(ctx, lease) },
		"Renew+Hold": func(ctx context.Context) error { return hold(ctx, h, lease, false) },
		"Renew+Beat": func(ctx context.Context) error {
			return hold(ctx, h, lease, true)
		},
		"Claim": func(ctx context.Context) error {
			return h.Claim(ctx, claimOf("ctl-x", election.Snapshot{TermVersion: 1 << 40}, lease, false))
		},
		"Publish": func(ctx context.Context) error {
			return h.Publish(ctx, lease, active("ctl-a", 1, election.StateStarting))
		},
		"Get":    func(ctx context.Context) error { _, err := h.Get(ctx, "term"); return err },
		"List":   func(ctx context.Context) error { _, err := h.List(ctx, ""); return err },
		"Put":    func(ctx context.Context) error { return h.Put(ctx, election.Put{Key: "settings", Value: []byte("1")}) },
		"Delete": func(ctx context.Context) error { return h.Delete(ctx, "settings", 0) },
	}
}

// releaseCalls returns the calls that end the reign if they are carried out.
func releaseCalls(h Host, lease election.LeaseID) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Release": func(ctx context.Context) error {
			return h.Release(ctx, election.Release{Lease: lease, Breadcrumb: election.Breadcrumb{Term: 1, Controller: "ctl-a", Clean: true}})
		},
		"Revoke": func(ctx context.Context) error { return h.Revoke(ctx, lease) },
	}
}

func (s *suite) endedContext() {
	h, other := s.open(), s.open()
	lease, _ := s.reign(h, "ctl-a", long, true)
	ended, cancel := context.WithCancel(s.Context())
	cancel()
	before := s.everything(other)
	for name, call := range calls(h, lease) {
		s.unknown(name, call(ended))
	}
	for name, call := range releaseCalls(h, lease) {
		s.unknown(name, call(ended))
	}
	if after := s.everything(other); after != before {
		s.Errorf("calls with a context that had ended changed\n%sto\n%s", before, after)
	}
	hints, sightings := h.Watch(ended), h.Follow(ended)
	s.closed("watch", func() bool { _, open := <-hints; return open })
	s.closed("follow", func() bool { _, open := <-sightings; return open })
}

func (s *suite) blackHole() {
	linker, ok := s.h.(Linker)
	if !ok {
		s.lacks("a link that swallows everything")
	}
	others := goleak.IgnoreCurrent()
	h, link := linker.OpenLinked(s.T)
	lease, _ := s.reign(h, "ctl-a", long, true)
	following, stop := context.WithCancel(s.Context())
	defer stop()
	hints, sightings := h.Watch(following), h.Follow(following)
	s.hinted("start", hints)
	link.Hold()
	const limit = 400 * time.Millisecond
	timed := func(name string, call func(context.Context) error) {
		s.Helper()
		ctx, cancel := context.WithTimeout(s.Context(), limit)
		defer cancel()
		start := time.Now()
		err := call(ctx)
		s.unknown(name, err)
		if took := time.Since(start); took > limit+3*time.Second {
			s.Errorf("%s returned %v after its context had ended", name, took-limit)
		}
	}
	for name, call := range calls(h, lease) {
		timed(name, call)
	}
	for name, call := range releaseCalls(h, lease) {
		timed(name, call)
	}
	// Cancelling works as well as a deadline.
	ctx, cancel := context.WithCancel(s.Context())
	time.AfterFunc(limit/4, cancel)
	_, err := h.Read(ctx)
	s.unknown("cancelled read", err)

	stop()
	s.closed("watch", func() bool { _, open := <-hints; return open })
	s.closed("follow", func() bool { _, open := <-sightings; return open })
	if err := h.Close(); err != nil {
		s.Errorf("cannot close: %v", err)
	}
	link.Cut() // the proxy's own goroutines
	var leak error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if leak = goleak.Find(others, goleak.IgnoreAnyFunction("github.com/tanist/tanist/election/electiontest.(*Proxy).accept")); leak == nil {
			return
		}
	}
	s.Errorf("goroutines are left after Close: %v", leak)
}

func (s *suite) lostReplies() {
	linker, ok := s.h.(Linker)
	if !ok {
		s.lacks("lost replies")
	}
	h, link := linker.OpenLinked(s.T)
	s.Cleanup(func() { _ = h.Close() })
	other := s.open()
	snap := s.read(h)
	lease := s.grant(h, long)
	lost := func(what string, call func(context.Context) error) {
		s.Helper()
		ctx, cancel := context.WithTimeout(s.Context(), 500*time.Millisecond)
		defer cancel()
		link.HoldReplies()
		err := call(ctx)
		s.unknown(what+" without a reply", err)
		link.Heal()
	}
	// In any case, reading shows the outcome: bound to my lease or not. A request that was not
	// carried out by then must not be carried out after the lease has been revoked.
	lost("claim", func(ctx context.Context) error { return h.Claim(ctx, claimOf("ctl-a", snap, lease, true)) })
	switch got := s.read(other); got.ActiveLease {
	case lease:
		s.Log("the claim had been carried out, and reading it back said so")
	case "":
		s.Log("the claim had not been carried out")
		s.must(h.Revoke(s.ctx(), lease))
		lease, _ = s.reign(h, "ctl-a", long, true)
	default:
		s.Fatalf("the role key is bound to %q", got.ActiveLease)
	}
	lost("renewal", func(ctx context.Context) error {
		return hold(ctx, h, lease, true)
	})
	s.must(hold(s.ctx(), h, lease, true))
	lost("publication", func(ctx context.Context) error {
		return h.Publish(ctx, lease, active("ctl-a", 1, election.StateServing))
	})
	s.must(h.Publish(s.ctx(), lease, active("ctl-a", 1, election.StateStopping)))
	if got := s.read(other); got.Active == nil || got.Active.State != election.StateStopping {
		s.Errorf("the role key is %+v after a later publication", got.Active)
	}
	crumb := election.Breadcrumb{Term: 1, Controller: "ctl-a", Clean: true}
	lost("release", func(ctx context.Context) error {
		return h.Release(ctx, election.Release{Lease: lease, Breadcrumb: crumb})
	})
	if err := h.Release(s.ctx(), election.Release{Lease: lease, Breadcrumb: crumb}); err != nil && !errors.Is(err, election.ErrLost) {
		s.Errorf("repeated release: %v, want nil or ErrLost", err)
	}
	if got := s.read(other); !got.Vacant() || !got.Breadcrumb.Clean {
		s.Errorf("after the release: %+v", got)
	}
}

func (s *suite) brokenLink() {
	linker, ok := s.h.(Linker)
	if !ok {
		s.lacks("a link that breaks")
	}
	h, link := linker.OpenLinked(s.T)
	s.Cleanup(func() { _ = h.Close() })
	other := s.open()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	hints := h.Watch(ctx)
	s.hinted("start", hints)
	settle(hints)
	link.Cut()
	short, cancelShort := context.WithTimeout(s.Context(), 500*time.Millisecond)
	defer cancelShort()
	_, err := h.Read(short)
	s.unknown("read through a cut", err)
	lease, term := s.reign(other, "ctl-b", long, true)
	settle(hints)
	link.Heal()
	s.hinted("a change behind a cut", hints)
	if snap := s.read(h); snap.ActiveLease != lease {
		s.Errorf("after the cut: %+v", snap)
	}
	settle(hints)
	s.must(other.Publish(s.ctx(), lease, active("ctl-b", term, election.StateServing)))
	s.hinted("a change after the cut", hints)
}

func (s *suite) followThroughOutage() {
	linker, ok := s.h.(Linker)
	if !ok {
		s.lacks("a link that swallows everything")
	}
	h, link := linker.OpenLinked(s.T)
	s.Cleanup(func() { _ = h.Close() })
	other := s.open()
	lease, term := s.reign(other, "ctl-a", long, true)
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	sightings := h.Follow(ctx)
	s.sight("starting", sightings, func(g election.Sighting) bool { return g.Active != nil && g.Err == nil })
	for name, fault := range map[string]func(){"black hole": link.Hold, "cut": link.Cut} {
		fault()
		s.sight(name+": an error, with the last active", sightings, func(g election.Sighting) bool { return g.Err != nil && g.Active != nil })
		state := election.StateServing
		if name == "cut" {
			state = election.StateStopping
		}
		s.must(other.Publish(s.ctx(), lease, active("ctl-a", term, state)))
		link.Heal()
		s.sight(name+": what happened meanwhile", sightings, func(g election.Sighting) bool {
			return g.Err == nil && g.Active != nil && g.Active.State == state
		})
	}
	// A follower that starts during an outage reports it.
	link.Cut()
	late := h.Follow(ctx)
	s.sight("a start in an outage", late, func(g election.Sighting) bool {
		if g.Err == nil {
			s.Errorf("sighting in an outage: %+v", g)
		}
		return g.Err != nil && g.Active == nil
	})
	link.Heal()
	s.sight("its recovery", late, func(g election.Sighting) bool { return g.Err == nil && g.Active != nil })
}

func (s *suite) stalledWatch() {
	staller, ok := s.h.(Staller)
	if !ok {
		s.lacks("a watch that stalls while reads work")
	}
	h, other := s.open(), s.open()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	sightings := h.Follow(ctx)
	s.sight("nobody", sightings, func(g election.Sighting) bool { return g.Active == nil && g.Err == nil })
	staller.StallWatch(s.T, h)
	lease, _ := s.reign(other, "ctl-b", long, true)
	s.eventually("a read behind a stalled watch", func(ctx context.Context) error {
		snap, err := h.Read(ctx)
		if err == nil && snap.ActiveLease != lease {
			err = fmt.Errorf("%w: it shows %+v", election.ErrLost, snap)
		}
		return err
	})
	s.sight("the change, by reading", sightings, func(g election.Sighting) bool { return g.Active != nil })
	staller.ResumeWatch(s.T, h)
}

func (s *suite) restart() {
	restarter, ok := s.h.(Restarter)
	if !ok {
		s.lacks("a store that stops and starts again")
	}
	h := s.open()
	lease, term := s.reign(h, "ctl-a", long, true)
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	hints := h.Watch(ctx)
	s.hinted("start", hints)
	settle(hints)
	restarter.Stop(s.T)
	short, cancelShort := context.WithTimeout(s.Context(), time.Second)
	defer cancelShort()
	s.unknown("renewal while the store is away", hold(short, h, lease, true))
	settle(hints)
	restarter.Start(s.T)
	s.hinted("the store is back", hints)
	s.eventually("renewal after a restart", func(ctx context.Context) error {
		return hold(ctx, h, lease, true)
	})
	if snap := s.read(h); snap.ActiveLease != lease || snap.Breadcrumb.Term != term {
		s.Errorf("after a restart: %+v", snap)
	}
}

// eventually repeats call, for a second each, until it succeeds. ErrLost is final.
func (s *suite) eventually(what string, call func(context.Context) error) {
	s.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(s.Context(), time.Second)
		err = call(ctx)
		cancel()
		if err == nil {
			return
		}
		if errors.Is(err, election.ErrLost) {
			break
		}
	}
	s.Fatalf("%s: %v", what, err)
}

func (s *suite) leaderKilled() {
	changer, ok := s.h.(LeaderChanger)
	if !ok {
		s.lacks("the death of the store's own leader")
	}
	h, other := s.open(), s.open()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	sightings := other.Follow(ctx)
	lease, term := s.reign(h, "ctl-a", 30*time.Second, true)
	s.sight("starting", sightings, func(g election.Sighting) bool { return g.Active != nil })
	s.must(hold(s.ctx(), h, lease, true))
	start := time.Now()
	changer.ChangeLeader(s.T)
	s.eventually("renewal while the store elects a leader", func(ctx context.Context) error {
		return hold(ctx, h, lease, true)
	})
	s.Logf("renewed %v after the store's leader was killed; the traits say %v", time.Since(start), h.Traits().LeaderGap)
	s.must(h.Publish(s.ctx(), lease, active("ctl-a", term, election.StateServing)))
	s.sight("serving", sightings, func(g election.Sighting) bool { return g.Err == nil && g.Active.Serving() })
	snap := s.read(other)
	if snap.ActiveLease != lease || !bytes.Equal(snap.Active.Encode(), active("ctl-a", term, election.StateServing).Encode()) {
		s.Errorf("after the store's leader was killed: %+v", snap)
	}
}
