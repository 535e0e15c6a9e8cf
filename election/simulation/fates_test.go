package simulation

import (
	"errors"
	"fmt"
	"time"

	"github.com/tanist/tanist/election"
)

// fates decide what befalls the world, from one stream of choices. Only the goroutine of the run uses them.
type fates struct {
	*world
	dice
	plan     plan
	backups  []func()
	settings []election.Timing
	skip     map[int]bool // faults that are left out, to make a run shorter
	count    int
	last     *host // that the last fault befell
	settled  int   // how often all faults have ended
}

// later lets something happen later, unless all faults have ended by then. world.mu is held.
func (f *fates) later(d time.Duration, do func()) {
	now := f.settled
	f.after(d, func() {
		if f.settled == now {
			do()
		}
	})
}

// plan is what kind of run a seed is.
type plan struct {
	consul  bool
	hosts   int
	beyond  bool
	long    bool          // leases of a minute, and hours between the faults
	bursts  int           // of faults, with a quiet time after each
	faults  int           // in one burst
	between time.Duration // two faults, at most
	idle    time.Duration // after a quiet time, at most
	keep    bool          // on_store_loss: keep, which is beyond the guarantees
	alike   bool          // all have one policy
	policy  election.StoreLoss
}

// planOf returns the kind of a seed's run.
func planOf(c chance) plan {
	p := plan{
		consul: c.of("store", 0).one(3), hosts: 2 + int(c.of("hosts", 0).in(2)), beyond: c.of("beyond", 0).one(8),
		long: c.of("long", 0).one(8), bursts: 8, faults: 20, between: 1200 * time.Millisecond, idle: 15 * time.Second,
	}
	if p.long {
		if p.hosts > 2 && !c.of("hosts", 1).one(4) { // idle time costs as much as there are processes
			p.hosts = 2
		}
		p.bursts, p.between, p.idle = 6, 12*time.Second, 24*time.Hour
	}
	p.keep = p.beyond && c.of("keep", 0).one(3)
	p.alike, p.policy = c.of("alike", 0).one(2), election.StoreLossStop
	if c.of("alike", 1).one(2) {
		p.policy = election.StoreLossFailsafe
	}
	return p
}

// timings returns the timings that a configuration may have.
func timings(p plan) ([]election.Timing, error) {
	traits := election.TraitsOf("etcd")
	if p.consul {
		traits = election.TraitsOf("consul")
	}
	long := election.Timing{
		Profile: "long", TTL: time.Minute, Validity: 58 * time.Second, RenewEvery: 26 * time.Second, StopBudget: 4 * time.Second,
	}
	if p.consul {
		long.Beat, long.Silence = true, time.Minute
	}
	wide := long
	wide.Profile, wide.TTL, wide.Validity, wide.RenewEvery = "wide", 40*time.Second, 35*time.Second, 12*time.Second
	if wide.Beat {
		wide.Silence = 36 * time.Second
	}
	tight := long // almost no margin but that for the clocks
	tight.Profile, tight.StopBudget = "tight", 200*time.Millisecond
	all := []election.Timing{long, wide, tight}
	if !p.long {
		all = nil
		for _, name := range []string{election.ProfileDefault, election.ProfileFast} {
			t, err := traits.Profile(name)
			if err != nil {
				return nil, err
			}
			all = append(all, t)
		}
		tight := all[0]
		tight.Profile, tight.StopBudget = "tight", 160*time.Millisecond
		all = append(all, tight)
	}
	for _, t := range all {
		if err := t.Validate(traits); err != nil {
			return nil, fmt.Errorf("%s: %v", t.Profile, err)
		}
	}
	return all, nil
}

// file draws what the configuration file of the next process says.
func (f *fates) file() settings {
	s := settings{
		timing: f.settings[f.IntN(len(f.settings))], policy: election.StoreLossStop, drain: time.Duration(f.IntN(2)) * 500 * time.Millisecond,
		local: f.IntN(2), priority: 100 + 10*f.IntN(2), yield: 8 * time.Second,
	}
	switch {
	case f.plan.alike:
		s.policy = f.plan.policy
	case f.IntN(3) == 0:
		s.policy = election.StoreLossFailsafe
	}
	if f.plan.keep {
		s.policy = election.StoreLossKeep
	}
	return s
}

// gap returns how long it is until the next fault. What matters is often done within milliseconds.
func (f *fates) gap() time.Duration {
	return f.between(0, f.plan.between/pick(f.dice, time.Duration(1), 5, 40))
}

// victim is any host, or more often the one that holds the role key, or the one that the last fault befell.
func (f *fates) victim() *host {
	h, n := f.hosts[f.IntN(len(f.hosts))], f.IntN(4)
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.store.snap.Active; a != nil && n < 2 && f.host(a.Controller) != nil {
		h = f.host(a.Controller)
	}
	if f.last != nil && n == 2 {
		h = f.last
	}
	f.last = h
	return h
}

// fault lets one thing happen. world.mu is not held.
func (f *fates) fault() {
	f.count++
	h := f.victim()
	n := f.IntN(len(faults))
	b := f.plan.between
	strength := f.between(b/12, pick(f.dice, 2*b, 7*b, 15*b))
	if f.skip[f.count] {
		return
	}
	f.mu.Lock()
	if f.IntN(6) == 0 {
		f.backups = append(f.backups, f.store.backup())
	}
	if what := faults[n](f, h, strength); what != "" {
		f.figures.Faults++
		f.timeline.add(h.name, "FAULT", fmt.Sprintf("%d:", f.count), what, strength)
	}
	f.mu.Unlock()
	f.restart(3)
}

// restart boots the sidecars of hosts that have none, one in so many.
func (f *fates) restart(oneIn int) {
	for _, h := range f.hosts {
		f.mu.Lock()
		lives := h.process.lives()
		f.mu.Unlock()
		if boot := f.IntN(oneIn) == 0; !lives && boot {
			h.start(f.file())
		}
	}
}

// faults are all the faults. Each returns what it did, or nothing. world.mu is held.
var faults = []func(f *fates, h *host, d time.Duration) string{
	usurp, usurp, usurp, stutter, stutter, stutter, loseAtStep, loseAtStep, loseAtStep,
	freeze, freeze, freezeAtStep, freezeAtStep, kill, killAtStep, killAtStep, terminate, detach, crash, suspend,
	killProgram, unhealthy, stuckProgram, killGuard, freezeGuard,
	cut, cut, oneWay, oneWay, slow, lossy, lossy, cutPeers, cutRepository, repositoryAway,
	storeAway, storeElects, storeRestarts, dropLease, dropLease, fullStore, stallWatch, rememberBackup, restoreBackup,
	deleteKey, overwriteRole, overwriteTerm, overwriteKey, switchover, switchover, pauseCluster, restartAll, emptyDisk, drift,
}

func freeze(_ *fates, h *host, d time.Duration) string {
	if !h.process.acts() {
		return ""
	}
	h.process.freeze(d)
	return "sidecar freezes"
}

var verbs = []string{
	"", "", "Hold", "Read", "Claim", "Grant", "Publish", "Release", "HandOver", "Put", "Start", "Extend", "Stop", "Save", "Clear", "Remember", "Raise", "Hook", "Adopt", "clock",
}

func freezeAtStep(f *fates, h *host, d time.Duration) string {
	verb, steps := pick(f.dice, verbs...), f.IntN(12)
	if !h.process.acts() {
		return ""
	}
	h.process.trap = trap{verb: verb, skip: steps, rest: d, set: true}
	return "sidecar will freeze at " + verb
}

// usurp lets the store drop the role key of a holder that does not notice: it is frozen, or cut off.
func usurp(f *fates, h *host, d time.Duration) string {
	v := h.timing.Validity
	how, rest, after, del := f.IntN(3), f.between(v/4, 3*v), f.between(0, v/2), f.IntN(2) == 0
	if a := f.store.snap.Active; a == nil || a.Controller != h.name || !h.process.acts() {
		return ""
	}
	id := f.store.snap.ActiveLease
	switch p := h.process; how {
	case 0:
		cut(f, h, rest)
	case 1:
		p.freeze(rest)
	default: // between the store's answer and the look at the clock, and again
		p.trap = trap{verb: "Hold", skip: f.IntN(3), rest: f.between(v/8, v), set: true}
		again := f.between(time.Millisecond, h.timing.RenewEvery)
		p.thawed = func() { f.later(again, func() { p.freeze(rest) }) }
	}
	f.later(after, func() {
		switch {
		case f.store.snap.ActiveLease != id:
		case del:
			f.store.del(f.store.next(), election.ActiveKey)
		default:
			f.store.revoke(id, true)
		}
	})
	return "does not notice that it loses the role key"
}

// stutter freezes and thaws a process again and again, now and then at a step.
func stutter(f *fates, h *host, _ time.Duration) string {
	p, at := h.process, time.Duration(0)
	for range 2 + f.IntN(6) {
		rest, verb, skip := f.between(h.timing.Validity/20, h.timing.Validity), "", f.IntN(3)
		if f.IntN(2) == 0 {
			verb = pick(f.dice, verbs...)
		}
		f.later(at, func() {
			switch {
			case !p.acts():
			case verb == "":
				p.freeze(rest)
			case !p.trap.set:
				p.trap = trap{verb: verb, skip: skip, rest: rest, set: true}
			}
		})
		at += rest + f.between(100*time.Microsecond, h.timing.RenewEvery/2)
	}
	return "sidecar stutters"
}

// loseAtStep spoils a request at a given step.
func loseAtStep(f *fates, h *host, _ time.Duration) string {
	h.link.spoil = spoil{verb: pick(f.dice, storeVerbs...), skip: f.IntN(3), how: f.IntN(4), late: f.between(time.Millisecond, 5*time.Second), set: true}
	return "a request will be spoilt: " + h.link.spoil.verb
}

var storeVerbs = []string{"Hold", "Read", "Claim", "Claim", "Claim", "Grant", "Publish", "Release", "Release", "HandOver", "HandOver", "Put"}

func kill(_ *fates, h *host, _ time.Duration) string {
	if !h.process.lives() {
		return ""
	}
	h.process.kill()
	return "sidecar is killed"
}

func killAtStep(f *fates, h *host, _ time.Duration) string {
	verb, steps := pick(f.dice, verbs...), f.IntN(12)
	if !h.process.acts() {
		return ""
	}
	h.process.trap = trap{verb: verb, skip: steps, set: true}
	return "sidecar will be killed at " + verb
}

func terminate(_ *fates, h *host, _ time.Duration) string {
	return end(h, errors.New("SIGTERM"), "SIGTERM")
}

func detach(_ *fates, h *host, _ time.Duration) string {
	return end(h, election.ErrDetach, "sidecar is upgraded")
}

func end(h *host, cause error, what string) string {
	if !h.process.acts() {
		return ""
	}
	cancel := h.process.cancel
	h.w.after(time.Microsecond, func() { cancel(cause) })
	return what
}

func crash(_ *fates, h *host, _ time.Duration) string {
	h.crash()
	return "host crashes"
}

func suspend(f *fates, h *host, d time.Duration) string {
	if !f.plan.beyond {
		return ""
	}
	h.suspend(d)
	return "host is suspended"
}

func killProgram(_ *fates, h *host, _ time.Duration) string {
	t := h.trace
	if t == nil || !t.running {
		return ""
	}
	t.end("killed by SIGKILL")
	return "program is killed"
}

func unhealthy(_ *fates, h *host, d time.Duration) string {
	h.setHealth("http: 500")
	h.w.after(d/4, func() { h.setHealth("") })
	return "program is unhealthy for a while"
}

func stuckProgram(f *fates, h *host, d time.Duration) string {
	if !f.plan.beyond {
		return ""
	}
	h.stuck = h.w.now().Add(d)
	return "program can't be killed"
}

func killGuard(_ *fates, h *host, _ time.Duration) string {
	t := h.trace
	if t == nil || !t.running {
		return ""
	}
	t.killGuard()
	return "guard is killed"
}

func freezeGuard(_ *fates, h *host, d time.Duration) string {
	t := h.trace
	if t == nil || !t.running || t.guardDead {
		return ""
	}
	t.freezeGuard(d)
	return "guard freezes"
}

func cut(_ *fates, h *host, d time.Duration) string {
	h.link.outCut, h.link.inCut = h.w.now().Add(d), h.w.now().Add(d)
	return "cut off from the store"
}

func oneWay(f *fates, h *host, d time.Duration) string {
	if f.IntN(2) == 0 {
		h.link.outCut = h.w.now().Add(d)
		return "requests to the store are lost"
	}
	h.link.inCut = h.w.now().Add(d)
	return "replies of the store are lost"
}

func slow(f *fates, h *host, d time.Duration) string {
	h.link.slow, h.link.slowBy = h.w.now().Add(d), f.between(time.Millisecond, time.Second)
	return "the way to the store is slow"
}

func lossy(f *fates, h *host, d time.Duration) string {
	h.link.lossy, h.link.loses = h.w.now().Add(d), uint64(1+f.IntN(6))
	return "the way to the store loses and repeats"
}

func cutPeers(_ *fates, h *host, d time.Duration) string {
	h.toPeers.outCut, h.toPeers.inCut = h.w.now().Add(d), h.w.now().Add(d)
	return "cut off from the other hosts"
}

func cutRepository(_ *fates, h *host, d time.Duration) string {
	h.toRepository.outCut, h.toRepository.inCut = h.w.now().Add(d), h.w.now().Add(d)
	return "cut off from the repository"
}

func repositoryAway(f *fates, _ *host, d time.Duration) string {
	f.repository.away = f.now().Add(d)
	return "the repository is away"
}

func storeAway(f *fates, _ *host, d time.Duration) string {
	f.world.storeAway = f.now().Add(d)
	return "the store is away"
}

func storeElects(f *fates, _ *host, _ time.Duration) string {
	gap := f.between(100*time.Millisecond, f.store.traits.LeaderGap)
	f.world.storeAway = f.now().Add(gap)
	f.after(gap, f.store.extendAll)
	return "the store elects a leader"
}

func storeRestarts(f *fates, _ *host, d time.Duration) string {
	f.world.storeAway = f.now().Add(d)
	f.after(d, f.store.extendAll)
	return "the store restarts as a whole"
}

func dropLease(f *fates, _ *host, _ time.Duration) string {
	all := f.store.allLeases()
	if len(all) == 0 {
		return ""
	}
	id := all[f.IntN(len(all))]
	if f.IntN(2) == 0 && f.store.snap.ActiveLease != "" {
		id = f.store.snap.ActiveLease
	}
	f.store.revoke(id, true)
	return "the store drops " + string(id)
}

func fullStore(f *fates, _ *host, d time.Duration) string {
	f.store.full = true
	f.after(d, func() { f.store.full = false })
	return "the store takes no writes"
}

func stallWatch(f *fates, h *host, d time.Duration) string {
	for _, w := range f.store.hints {
		if w.p.host == h {
			w.stalled = f.now().Add(d)
		}
	}
	return "its watch is silent"
}

func rememberBackup(f *fates, _ *host, _ time.Duration) string {
	f.backups = append(f.backups, f.store.backup())
	return "the store is backed up"
}

func restoreBackup(f *fates, _ *host, _ time.Duration) string {
	if len(f.backups) == 0 || f.plan.consul && !f.plan.beyond { // Consul can't tell that it was restored
		return ""
	}
	f.backups[f.IntN(len(f.backups))]()
	return "the store is restored from a backup"
}

// stranger writes or removes a key by hand.
func (f *fates) stranger(key, value string) {
	id := election.LeaseID("")
	if f.plan.consul || f.IntN(3) == 0 {
		id = f.store.keys[key].lease // a plain write in Consul leaves a key bound
	}
	f.store.put(f.store.next(), key, []byte(value), id)
}

func deleteKey(f *fates, _ *host, _ time.Duration) string {
	if len(f.store.names) == 0 {
		return ""
	}
	key := f.store.names[f.IntN(len(f.store.names))]
	if f.IntN(2) == 0 {
		key = election.ActiveKey
	}
	if key == election.TermKey && f.store.keys[election.ActiveKey].lease == "" && !f.plan.beyond {
		return "" // with nobody to write it again, what was owed would be forgotten
	}
	f.store.del(f.store.next(), key)
	return "somebody deletes " + key
}

func overwriteRole(f *fates, _ *host, _ time.Duration) string {
	f.stranger(election.ActiveKey, pick(f.dice, `{"controller":"mallory","term":9007199254740991}`, `{"controller":"ctl-a","term":3}`, "x", ""))
	return "somebody writes over the role key"
}

func overwriteTerm(f *fates, _ *host, _ time.Duration) string {
	v := pick(f.dice, "seven", "", "18446744073709551615", "9223372036854775806", fmt.Sprint(10+f.IntN(1000)), "0")
	f.stranger(election.TermKey, v)
	return "somebody writes into the term key: " + v
}

func overwriteKey(f *fates, _ *host, _ time.Duration) string {
	if len(f.store.names) == 0 {
		return ""
	}
	key := f.store.names[f.IntN(len(f.store.names))]
	if key == election.TermKey || key == election.PauseKey {
		return ""
	}
	f.stranger(key, pick(f.dice, "{}", "x", `{"name":"ctl-a"}`))
	return "somebody writes over " + key
}

func switchover(f *fates, _ *host, _ time.Duration) string {
	a := f.store.snap.Active
	if a == nil {
		return ""
	}
	to := ""
	if f.IntN(2) == 0 {
		to = f.hosts[f.IntN(len(f.hosts))].name
	}
	r := election.Request{ID: "1", Op: election.OpSwitchover, To: to, By: "ana", Term: a.Term, For: time.Minute}
	if f.store.set(election.Put{Key: election.RequestKey, Value: r.Encode(), If: new(election.Version)}) != nil {
		return ""
	}
	return "switchover to " + to
}

func pauseCluster(f *fates, _ *host, d time.Duration) string {
	f.store.put(f.store.next(), election.PauseKey, []byte(`{"by":"ana"}`), "")
	f.after(d, func() { f.store.del(f.store.next(), election.PauseKey) })
	return "paused"
}

func restartAll(f *fates, _ *host, _ time.Duration) string {
	for _, h := range f.hosts {
		if h.process.lives() {
			h.process.kill()
		}
	}
	return "all sidecars are killed"
}

func emptyDisk(f *fates, h *host, _ time.Duration) string {
	if !f.plan.beyond || h.process.lives() { // a side that never saw a reign of long validity can't wait for it once its record is lost
		return ""
	}
	h.held, h.known, h.before = nil, election.Known{}, ""
	return "the state directory is emptied"
}

func drift(f *fates, h *host, _ time.Duration) string {
	if !f.plan.beyond || h.process.lives() || h.trace != nil {
		return ""
	}
	h.booted, h.rate = f.now(), 0.5+f.Float64()
	h.boots++
	h.known.CoolTill, h.known.RestTill = 0, 0
	return "the host boots with a clock that is far off"
}

// settle ends all faults.
func (f *fates) settle() {
	f.mu.Lock()
	now := f.now()
	f.timeline.add("fates", "all faults end")
	f.attended = true
	f.settled++
	f.world.storeAway, f.repository.away, f.store.full = now, now, false
	for _, key := range []string{election.PauseKey, election.RequestKey} {
		f.store.del(f.store.next(), key)
	}
	for _, h := range f.hosts {
		for _, l := range []*link{h.link, h.toRepository, h.toPeers} {
			l.outCut, l.inCut, l.slow, l.lossy, l.spoil = now, now, now, now, spoil{}
		}
		h.stuck = now
		h.setHealth("")
		if h.process.lives() {
			h.process.trap, h.process.thawed = trap{}, nil
			h.process.thaw()
		}
		if t := h.trace; t != nil && !t.over && t.guardTill.After(now) {
			t.guardTill = now
		}
	}
	f.mu.Unlock()
	f.restart(1)
}
