package simulation

import (
	"errors"
	"fmt"
	"time"

	"github.com/tanist/tanist/election"
)

// kinds returns all the kinds of faults.
func kinds() []kind {
	return []kind{
		{"freeze", 3, usurp},
		{"freeze", 3, stutter},
		{"freeze", 2, freeze},
		{"freeze", 2, freezeAtStep},
		{"freeze", 1, suspend},
		{"restart", 1, kill},
		{"restart", 2, killAtStep},
		{"restart", 1, terminate},
		{"restart", 1, detach},
		{"restart", 3, reborn},
		{"restart", 1, crash},
		{"restart", 1, restartAll},
		{"restart", 1, emptyDisk},
		{"restart", 1, drift},
		{"guard", 1, killProgram},
		{"guard", 1, unhealthy},
		{"guard", 1, stuckProgram},
		{"guard", 1, killGuard},
		{"guard", 1, freezeGuard},
		{"guard", 1, hideTrace},
		{"network", 2, cut},
		{"network", 2, oneWay},
		{"network", 1, slow},
		{"network", 2, lossy},
		{"network", 3, loseAtStep},
		{"network", 1, cutPeers},
		{"repository", 1, cutRepository},
		{"repository", 1, repositoryAway},
		{"repository", 1, raiseRepository},
		{"store", 1, storeAway},
		{"store", 1, storeElects},
		{"store", 1, storeRestarts},
		{"store", 2, dropLease},
		{"store", 1, fullStore},
		{"store", 1, stallWatch},
		{"store", 1, rememberBackup},
		{"store", 1, restoreBackup},
		{"store", 1, restoreSoon},
		{"store", 1, moveStore},
		{"keys", 1, deleteKey},
		{"keys", 1, overwriteRole},
		{"keys", 1, overwriteTerm},
		{"keys", 1, overwriteKey},
		{"people", 3, switchover},
		{"people", 1, pauseCluster},
		{"people", 1, standby},
		{"people", 1, restartProgram},
		{"people", 1, schedule},
		{"people", 1, powerOff},
		{"conjunctions", 4, atStep},
		{"conjunctions", 3, afterEvent},
	}
}

func freeze(_ *fates, h *host, d time.Duration) string {
	if !h.process.acts() {
		return ""
	}
	h.process.freeze(d)
	return "sidecar freezes"
}

var verbs = []string{
	"", "", "Hold", "Hold", "Read", "Renew", "Claim", "Grant", "Publish", "Release", "HandOver", "Put", "Start", "Extend", "Stop", "Save", "Clear", "Remember", "Raise", "Hook", "Adopt", "clock",
}

// step draws a step of a process, and how often it is passed first.
func (f *fates) step() (verb string, skip int) {
	return pick(f.dice, verbs...), f.IntN(pick(f.dice, 2, 4, 12))
}

func freezeAtStep(f *fates, h *host, d time.Duration) string {
	verb, skip := f.step()
	if !h.process.acts() {
		return ""
	}
	h.process.trap = trap{verb, skip, func() { h.process.freeze(d) }}
	return "sidecar will freeze at " + verb
}

// atStep lets any fault happen when a process passes a step: to its host, or to another.
func atStep(f *fates, h *host, d time.Duration) string {
	verb, skip := f.step()
	k, g, victim := f.draw(), f.own("at step", f.Uint64()), h
	if f.IntN(3) == 0 {
		victim = f.hosts[f.IntN(len(f.hosts))]
	}
	if !h.process.acts() {
		return ""
	}
	h.process.trap = trap{verb, skip, func() { f.befall(g, k, victim, d) }}
	return "something will happen at " + verb
}

// afterEvent lets any fault happen when something happens in the store, or a little later.
func afterEvent(f *fates, h *host, d time.Duration) string {
	what, skip, k, g := pick(f.dice, events...), f.IntN(3), f.draw(), f.own("after event", f.Uint64())
	late := pick(f.dice, 0, f.between(0, 5*time.Millisecond), f.between(0, h.timing.Validity/2))
	whose := f.IntN(2) == 0
	f.when(what, skip, func(by string) {
		victim := h
		if other := f.host(by); whose && other != nil {
			victim = other
		}
		f.later(late, func() { f.befall(g, k, victim, d) })
	})
	return "something will happen when somebody " + what
}

var events = []string{"claims", "claims", "releases", "hands over", "publishes", "loses the role key"}

// when lets something happen after an event in the store.
func (f *fates) when(what string, skip int, do func(by string)) {
	if s := f.store; len(s.waiting) < 8 {
		s.waiting = append(s.waiting, waiting{what, skip, do})
	}
}

// usurp lets the store drop the role key of a holder, or of one that is about to be, that does not
// notice: it is frozen, or cut off, often between the store's answer and its look at the clock.
func usurp(f *fates, h *host, _ time.Duration) string {
	v := h.timing.Validity
	verb, skip := pick(f.dice, "", "", "", "Hold", "Hold", "Hold", "Hold", "Claim", "Claim", "Renew", "Read", "Grant", "Adopt"), f.IntN(3)
	rest, after, del := f.between(v/4, 3*v), f.between(0, v/2), f.IntN(2) == 0
	first, again, then := f.between(v/8, v), f.between(time.Millisecond, h.timing.RenewEvery), f.IntN(3)
	p := h.process
	if !p.acts() || verb == "" && !f.holds(h) {
		return ""
	}
	inattentive := func() {
		if then == 0 {
			cut(f, h, rest)
			return
		}
		p.freeze(rest)
	}
	if verb == "" {
		inattentive()
		f.later(after, func() { f.lose(h, del) })
		return "does not notice that it loses the role key"
	}
	p.trap = trap{verb, skip, func() {
		p.freeze(first)
		p.thawed = func() { f.later(again, inattentive) }
		if late := min(after, first/2); f.holds(h) {
			f.later(late, func() { f.lose(h, del) })
		} else {
			f.when(pick(f.dice, "claims", "hands over"), 0, func(string) { f.later(late, func() { f.lose(h, del) }) })
		}
	}}
	return "will not notice that it loses the role key, from " + verb
}

// holds reports whether the role key is a host's.
func (f *fates) holds(h *host) bool {
	a := f.store.snap.Active
	return a != nil && a.Controller == h.name
}

// lose removes the role key of a host, or its lease.
func (f *fates) lose(h *host, del bool) {
	switch {
	case !f.holds(h):
	case del:
		f.store.del(f.store.next(), election.ActiveKey)
	default:
		f.store.revoke(f.store.snap.ActiveLease, true)
	}
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
			case p.trap.do == nil:
				p.trap = trap{verb, skip, func() { p.freeze(rest) }}
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
	verb, skip := f.step()
	if !h.process.acts() {
		return ""
	}
	h.process.trap = trap{verb, skip, h.process.kill}
	return "sidecar will be killed at " + verb
}

// reborn ends a sidecar, and starts the next process at once, with another file. Something may happen
// to that one at a step.
func reborn(f *fates, h *host, d time.Duration) string {
	file, after, how := f.file(), f.between(0, 300*time.Millisecond), f.IntN(5)
	verb, skip := f.step()
	k, g, trapped := f.draw(), f.own("at birth", f.Uint64()), f.IntN(2) == 0
	if !h.process.lives() {
		return ""
	}
	settled := f.settled
	h.reborn = func() {
		f.later(after, func() {
			if h.process.lives() {
				return
			}
			go h.startTrapped(file, func(p *process) {
				if trapped && f.settled == settled {
					p.trap = trap{verb, skip, func() { f.befall(g, k, h, d) }}
				}
			})
		})
	}
	switch {
	case how < 3:
		h.process.kill()
		return "sidecar is killed and starts again"
	case how == 3:
		return end(h, errors.New("SIGTERM"), "sidecar is restarted")
	}
	return end(h, election.ErrDetach, "sidecar is upgraded, and starts again")
}

func terminate(_ *fates, h *host, _ time.Duration) string {
	return end(h, errors.New("SIGTERM"), "SIGTERM")
}

func detach(_ *fates, h *host, _ time.Duration) string {
	return end(h, election.ErrDetach, "sidecar is upgraded")
}

func end(h *host, cause error, what string) string {
	if !h.process.acts() {
		h.reborn = nil
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

// restorable reports whether the store tells that it was restored. Consul can't.
func (f *fates) restorable() bool { return !f.plan.consul || f.plan.beyond }

func restoreBackup(f *fates, _ *host, _ time.Duration) string {
	if len(f.backups) == 0 || !f.restorable() {
		return ""
	}
	back := f.IntN(len(f.backups))
	if f.IntN(2) == 0 {
		back = max(back, len(f.backups)-2)
	}
	f.rewound, f.scribbled = true, true
	f.backups[back]()
	return "the store is restored from a backup"
}

// restoreSoon takes a backup now, and restores it soon.
func restoreSoon(f *fates, h *host, d time.Duration) string {
	late := pick(f.dice, d, f.between(0, h.timing.Validity), f.between(0, 3*h.timing.Validity))
	if !f.restorable() {
		return ""
	}
	backup := f.store.backup()
	f.later(late, func() {
		f.rewound, f.scribbled = true, true
		f.timeline.add("store", "is restored")
		backup()
	})
	return "the store is backed up, and will be restored"
}

// moveStore gives the store another identity, with all that it knows.
func moveStore(f *fates, _ *host, _ time.Duration) string {
	if !f.restorable() {
		return ""
	}
	f.scribbled = true
	f.store.backup()()
	return "the store moves"
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
	f.rewound, f.scribbled = f.rewound || key == election.TermKey, f.scribbled || key != election.ActiveKey && key != election.TermKey
	f.store.del(f.store.next(), key)
	return "somebody deletes " + key
}

func overwriteRole(f *fates, _ *host, _ time.Duration) string {
	f.stranger(election.ActiveKey, pick(f.dice, `{"controller":"mallory","term":9007199254740991}`, `{"controller":"ctl-a","term":3}`, "x", ""))
	return "somebody writes over the role key"
}

func overwriteTerm(f *fates, _ *host, _ time.Duration) string {
	f.rewound = true
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
	f.scribbled = true
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
	if !f.ask(election.Request{ID: "1", Op: election.OpSwitchover, To: to, Term: a.Term}) {
		return ""
	}
	return "switchover to " + to
}

func pauseCluster(f *fates, _ *host, d time.Duration) string {
	f.store.put(f.store.next(), election.PauseKey, []byte(`{"by":"ana"}`), "")
	f.after(d, func() { f.store.del(f.store.next(), election.PauseKey) })
	return "paused"
}

// ask writes a request of an operator, if there is none.
func (f *fates) ask(r election.Request) bool {
	r.By, r.For = "ana", time.Minute
	return f.store.set(election.Put{Key: election.RequestKey, Value: r.Encode(), If: new(election.Version)}) == nil
}

func standby(f *fates, _ *host, d time.Duration) string {
	all := election.Standbys{}
	for _, h := range f.hosts {
		if f.IntN(3) == 0 {
			all[h.name] = election.Standby{By: "ana", Ban: f.IntN(2) == 0}
		}
	}
	f.store.put(f.store.next(), election.StandbyKey, all.Encode(), "")
	f.later(d, func() { f.store.del(f.store.next(), election.StandbyKey) })
	return "some are on standby"
}

func restartProgram(f *fates, _ *host, _ time.Duration) string {
	a := f.store.snap.Active
	if a == nil || !f.ask(election.Request{ID: fmt.Sprint(f.Uint64()), Op: election.OpRestart, Term: a.Term}) {
		return ""
	}
	return "a restart in place"
}

func schedule(f *fates, _ *host, _ time.Duration) string {
	a, at := f.store.snap.Active, f.now().Add(f.between(0, 10*time.Second))
	if a == nil || !f.ask(election.Request{ID: fmt.Sprint(f.Uint64()), Op: election.OpScheduled, Term: a.Term, At: at}) {
		return ""
	}
	return "a switchover is scheduled"
}

// powerOff ends everything on a host, and an operator confirms that it is dead: perhaps late, when
// another reigns already or the host is up again.
func powerOff(f *fates, h *host, _ time.Duration) string {
	h.crash()
	read, late := f.between(0, 500*time.Millisecond), pick(f.dice, 0, f.between(0, 3*time.Second))
	f.later(read, func() {
		dead, err := election.Certify(f.store.snapshot(), h.name)
		if err != nil || h.process.lives() {
			return
		}
		dead.By = "ana"
		f.later(late, func() { f.store.put(f.store.next(), election.DeadKey, dead.Encode(), "") })
	})
	return "host is powered off, and will be confirmed dead"
}

// raiseRepository is somebody who raises the repository's term by hand, or uses it for another
// cluster.
func raiseRepository(f *fates, _ *host, _ time.Duration) string {
	r := f.repository
	if f.plan.open {
		return ""
	}
	r.term, r.by, r.opened, r.sessions = r.term+1+election.Term(f.IntN(1000)), "mallory", false, nil
	return fmt.Sprintf("somebody raises the repository to term %d", r.term)
}

// hideTrace loses what the disk says of the program that runs: the next process cannot find it.
func hideTrace(_ *fates, h *host, _ time.Duration) string {
	t := h.trace
	if t == nil || t.over {
		return ""
	}
	t.hidden = true
	return "the record of the program is lost"
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
	h.held, h.known, h.before, h.newest = nil, election.Known{}, "", 0
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
