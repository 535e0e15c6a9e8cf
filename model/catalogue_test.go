package model

import "strings"

// model is one Promela file and its checks.
type model struct {
	name                          string
	right, deep, mutants, reached []check
}

// check is one search: its name (with MUT_ or REACH_ before it, the switch in the file), its
// subject, and the bounds.
type check struct {
	name string
	what string
	defs []string
}

func (c check) all(prefix string) []string {
	all := []string{prefix + c.name}
	if prefix == "MUT_" {
		all = append(all, "SAFETY_ONLY")
	}
	return append(all, c.defs...)
}

func bounds(s string) []string { return strings.Fields(s) }

var models = []model{lease, adoption, guard, fence, peer}

var lease = model{
	name: "lease",
	right: []check{
		{"default", "never two, no beat", bounds("V=2 CUTS=1 RESTARTS=0")},
		{"longer validity", "never two, a longer validity", bounds("V=3 CUTS=0")},
		{"fast", "never two, with a beat", bounds("BEAT")},
		{"suspended hosts", "never two, a host sleeps", bounds("SUSPENDS=1 RESTARTS=0")},
		{"three nodes", "never two, three nodes", bounds("N=3 RESTARTS=0")},
		{"restored store", "never two, the store is restored from a backup", bounds("RESTORES=1 CUTS=1 RESTARTS=0 CLAIMS=2")},
		{"takeover", "host crash: the other runs within V of the lease's end", bounds("LIVENESS TAKEOVER=2")},
		{"takeover, fast", "host crash: the other runs within V", bounds("BEAT LIVENESS TAKEOVER=2")},
	},
	deep: []check{
		{"default", "", bounds("V=3 CUTS=1 RESTARTS=0")},
		{"fast", "", bounds("BEAT CUTS=1")},
		{"suspended hosts", "", bounds("SUSPENDS=1 CUTS=1 RESTARTS=0")},
		{"three nodes", "", bounds("N=3 CLAIMS=4 RESTARTS=0")},
		{"restored store", "", bounds("RESTORES=1 CUTS=1 RESTARTS=0")},
	},
	mutants: []check{
		{"FROM_REPLY", "validity counts from when the request was sent", nil},
		{"MONOTONIC", "it is counted on a clock that runs while the host sleeps", bounds("SUSPENDS=1 RESTARTS=0")},
		{"LATE_STOP", "the stop begins early enough to finish before the end", nil},
		{"NOT_STICKY", "a reply that comes after the end, or after the release, revives nothing", nil},
		{"RELEASE_FIRST", "release last", nil},
		{"TAKE_UP_LEFT", "**new:** a reign whose release was sent is not adopted: the release may still arrive", nil},
		{"NO_WAIT", "after an unclean loss, the old validity is waited out", nil},
		{"START_IN_DEBT", "nothing starts while a debt is open", nil},
		{"DEBT_CLAIM", "a claim passes the debt on", nil},
		{"DEBT_RELEASE", "a clean release passes the debt on", nil},
		{"DEBT_HANDOVER", "nothing is handed over while a debt is open", bounds("N=3 CLAIMS=4 RESTARTS=0")},
		{"DEBT_JUMP", "a jump of the term passes the debt on", nil},
		{"RESTART", "a restarted process waits out the record's debt", nil},
		{"OLD_SIGHT", "the debt counts from when *that version* was first seen", bounds("CUTS=1 CLAIMS=4 RESTARTS=0")},
		{"PROOF_LEASE", "a lease prolongation is no proof: the role key must be bound to it", nil},
		{"INHERIT", "and it does not extend a reign that was handed over or adopted", nil},
		{"BLIND_CLAIM", "a claim compares: the role key absent, the record as read", nil},
		{"NO_NONCE", "an ambiguous time-out is no win", nil},
		{"ERROR_IS_LOSS", "an unknown error is no loss before the deadline", nil},
		{"BEAT_SKIPPED", "where the reign beats, only a written beat proves it", bounds("BEAT")},
		{"SILENCE_BLIND", "a claim by silence compares with the beat", bounds("BEAT")},
		{"SHORT_SILENCE", "the silence outlasts the validity", bounds("BEAT")},
		{"NO_DISK", "the highest term seen is on the disk", bounds("RESTORES=1 CUTS=1")},
		{"NO_IDENTITY", "**new:** another identity of the store is waited out like an unclean loss; the highest term alone is not enough", bounds("RESTORES=1 CUTS=1 RESTARTS=0 CLAIMS=2")},
		{"NOTED_EARLY", "**new:** the new identity is noted on disk when that wait is over, not before", bounds("RESTORES=1 CUTS=1 CLAIMS=2 DROPS=0")},
		{"PROOF_ANYWHERE", "**new:** a proof comes from the store in which the reign began", bounds("RESTORES=1 CUTS=1 RESTARTS=0 CLAIMS=2")},
	},
	reached: []check{
		{"HELD", "the role key is gone, its holder's program runs on, the other claims and waits", nil},
		{"RELEASED", "a clean release while an earlier holder's program runs", nil},
		{"PAID", "a program starts under a reign that began with a debt", nil},
		{"DEPOSED", "a program starts after every claim and every early loss", nil},
		{"RESTORED", "after a restore, the new holder waits while the old one's program runs", bounds("RESTORES=1 CUTS=1")},
	},
}

var adoption = model{
	name: "adoption",
	right: []check{
		{"small", "never two; a program runs under its own reign", bounds("REIGNS=2 PROCESSES=3 DROPS=1")},
		{"takeover", "host crash: the other starts within the longer validity of the lease's end", bounds("LIVENESS TAKEOVER=3")},
	},
	deep: []check{
		{"more processes", "", bounds("REIGNS=4 PROCESSES=6 DROPS=3")},
		{"longer validities", "", bounds("SHORT=3 LONG=6 REIGNS=3 PROCESSES=4 DROPS=2")},
	},
	mutants: []check{
		{"OWN_VALIDITY", "an adopted reign keeps its validity, whatever the new configuration has", nil},
		{"OWN_BEAT", "and its beat", nil},
		{"TAKER_VALIDITY", "a taker waits out the validity of the record, not its own", nil},
		{"TAKER_SILENCE", "and deposes by silence only a reign that beats, after the record's validity", nil},
		{"NO_LOCK", "one process holds the state directory", nil},
		{"ADOPT_DATES", "adoption extends nothing: only a proof does", nil},
		{"NAME", "a reign is known by its nonce, not by the controller's name", nil},
	},
	reached: []check{
		{"ADOPTED", "a process with another configuration holds a reign that it adopted", nil},
		{"SECOND", "a second reign starts its program", nil},
		{"SILENCE", "a second reign, adopted by a later process, is silent", nil},
	},
}

var guard = model{
	name: "guard",
	right: []check{
		{"small", "nothing clean while the tree may live; never two", bounds("FAULTS=3")},
		{"cgroup", "the same, with a cgroup", bounds("CGROUP FAULTS=3")},
		{"back", "runs, or another starts, within 2 V", bounds("LIVENESS TAKEOVER=4 FAULTS=2")},
		{"back, cgroup", "the same, with a cgroup", bounds("CGROUP LIVENESS TAKEOVER=4 FAULTS=2")},
	},
	deep: []check{
		{"more faults", "", bounds("V=4 FAULTS=6 RENEWALS=6")},
		{"more faults, cgroup", "", bounds("CGROUP V=4 FAULTS=6 RENEWALS=6")},
	},
	mutants: []check{
		{"LATE_RECORD", "intent is on disk before the act", nil},
		{"SILENT_IS_GONE", "an intent whose guard does not answer is unknown: the guard may be about to listen", nil},
		{"UNKNOWN_GONE", "unknown is not gone", nil},
		{"UNKNOWN_CLEAN", "unknown is released unclean, even after the wait", nil},
		{"EMPTY_IS_GONE", "a cgroup that is empty may yet be filled", bounds("CGROUP")},
		{"TOLD_IS_GONE", "a stop is confirmed, not only requested", nil},
		{"PROCESS_GROUP", "the whole tree is killed, not a process group", nil},
		{"NO_DEADLINE", "the guard ends the tree at the deadline", nil},
		{"NO_RECHECK", "the guard checks the deadline again before it starts the program", nil},
		{"RELATIVE", "an extension is an instant, not a duration: what a thawed guard reads is old", nil},
		{"NO_SUBREAPER", "the sidecar ends the tree itself when the guard stops answering", nil},
	},
	reached: []check{
		{"ADOPTED", "a second process extends the deadline of a guard that it adopted", nil},
		{"UNKNOWN", "unknown, while the tree lives", nil},
		{"DEADLINE", "the guard ends the tree without a sidecar", nil},
		{"CLEAN", "a clean release after the program ran", nil},
	},
}

var fence = model{
	name: "fence",
	right: []check{
		{"small", "no commit of an older term after a newer one is open; with no more faults, the newest term opens", bounds("TERMS=3 SESSIONS=2 CHANGES=1")},
	},
	deep: []check{
		{"four terms", "", bounds("TERMS=4 SESSIONS=2 CHANGES=2")},
		{"three sessions", "", bounds("TERMS=3 SESSIONS=3 CHANGES=1")},
	},
	mutants: []check{
		{"NO_FENCE", "the repository is fenced at all: killing processes leaves a COMMIT in a send buffer", nil},
		{"ONE_COMMIT", "begin and open are not one transaction", nil},
		{"VISIBLE_ONLY", "drain waits for backends that are still starting", nil},
		{"LATE_SECRET", "the new secret is set in begin, not in open", nil},
		{"SAME_SECRET", "the secret is bound to the term", nil},
		{"NO_COMPARE", "begin compares the term", nil},
		{"NO_DRAIN", "open waits for drain", nil},
		{"OPEN_UNCHECKED", "open checks the term again", nil},
		{"NO_SEAL", "open compares the stored secret with the term's", nil},
		{"SEAL_IF_FOUND", "it compares even if drain found no session", nil},
		{"SEAL_AT_OPEN", "a changed secret is set again **before** the barrier, not in the commit that opens", nil},
		{"LATE_OPEN", "a changed secret is set again by the next attempt, so that a late open of this one is refused", nil},
		{"ONE_PASS", "drain passes the barrier again when no session is left that could change the secret, and take it back", nil},
		{"SESSIONS_FIRST", "drain reads virtual transactions first, sessions second; or open checks for sessions again (either is enough)", nil},
		{"ASYNC", "*assumption:* the repository does not lose a commit (no failover to an asynchronous standby)", nil},
	},
	reached: []check{
		{"OPEN", "the last term is open and has a session", nil},
		{"BARRIER", "drain waits for a starting session", nil},
		{"RACED", "a session that was told to end changes the secret", nil},
		{"RESEALED", "a term opens after its secret was changed and set again", nil},
	},
}

var peer = model{
	name: "peer",
	right: []check{
		{"stop", "never two, `on_store_loss: stop`", bounds("CHANGES=2 DROPS=0 RESTARTS=1")},
		{"stop, key vanishes", "never two, the role key vanishes", bounds("CHANGES=2 DROPS=1 RESTARTS=0")},
		{"failsafe", "never two, `failsafe`", bounds("FAILSAFE CHANGES=2 DROPS=1 RESTARTS=0")},
		{"takeover", "host crash: a passive starts within V", bounds("LIVENESS TAKEOVER=3 CHANGES=1 DROPS=1 RESTARTS=0")},
	},
	deep: []check{
		{"stop", "", bounds("CHANGES=2 DROPS=1 RESTARTS=1")},
		{"failsafe", "", bounds("FAILSAFE CHANGES=2 DROPS=1 RESTARTS=1")},
		{"longer V", "", bounds("V=4 CHANGES=2 DROPS=0 RESTARTS=1")},
		{"two rounds", "", bounds("ROUNDS=2 P=3 V=3 CHANGES=1 DROPS=0 RESTARTS=0")},
		{"three passives", "", bounds("N=3 CHANGES=2 DROPS=0 RESTARTS=0")},
		{"three passives, restarts", "", bounds("N=3 CHANGES=1 DROPS=0 RESTARTS=1")},
		{"three passives, failsafe", "", bounds("N=3 FAILSAFE CHANGES=1 DROPS=1 RESTARTS=0")},
		{"takeover", "", bounds("LIVENESS TAKEOVER=3 CHANGES=1 DROPS=1 RESTARTS=1")},
	},
	mutants: []check{
		{"FROM_REPLY", "1: validity counts from when the round was sent", bounds("CHANGES=1 DROPS=0 RESTARTS=0")},
		{"ONE_ANSWERS", "1: *every* listed passive must answer", bounds("CHANGES=1 DROPS=0 RESTARTS=0")},
		{"ANY_ROUND", "1: an answer counts for its own round only", bounds("ROUNDS=2 P=3 V=3 CHANGES=1 DROPS=0 RESTARTS=0")},
		{"EARLY_CLAIM", "2: a passive claims only when its own promise has expired", bounds("CHANGES=1 DROPS=0 RESTARTS=0")},
		{"ANY_VERSION", "2: by compare-and-swap on the version that lists it", bounds("CHANGES=2 DROPS=0 RESTARTS=0")},
		{"PROMISE_CLAIMING", "2: no promise while a claim is under way; or the deadline is sticky (either is enough)", bounds("MUT_NOT_STICKY CHANGES=1 DROPS=0 RESTARTS=0")},
		{"ORPHAN", "2: an earlier process's claim is adopted only when the passive's own promise has expired; or the deadline is sticky", bounds("MUT_NOT_STICKY CHANGES=1 DROPS=0 RESTARTS=1")},
		{"PENDING_NEW", "3: while a change is pending, the old list must answer", bounds("CHANGES=2 DROPS=0 RESTARTS=0")},
		{"PENDING_OLD", "3: while a change is pending, the new list must answer", bounds("CHANGES=2 DROPS=0 RESTARTS=0")},
		{"PENDING_STORE", "3: nothing extends while a change to store mode is pending (an earlier wording)", bounds("FAILSAFE CHANGES=2 DROPS=1 RESTARTS=0")},
		{"READ_OLD", "3: reading the old record does not prove that a change was refused", bounds("CHANGES=2 DROPS=0 RESTARTS=0")},
		{"UNLISTED", "4: a passive that is not listed does not claim while the role key is there", bounds("CHANGES=1 DROPS=0 RESTARTS=0")},
		{"RESTART", "4, 6: a passive that restarts has seen nothing", bounds("CHANGES=1 DROPS=0 RESTARTS=1")},
		{"STOP_PEERS_ALONE", "5: with `stop`, validity is the earlier of the peers' and the store's", bounds("CHANGES=1 DROPS=1 RESTARTS=0")},
		{"FAILSAFE_UNLISTED", "5: with `failsafe`, an absent role key does not entitle an unlisted passive", bounds("FAILSAFE CHANGES=1 DROPS=1 RESTARTS=0")},
		{"NO_ABSENCE_WAIT", "5: with `stop`, an absent role key is waited out", bounds("CHANGES=1 DROPS=1 RESTARTS=0")},
		{"IGNORE_DEBT", "6: a passive claims only when the debt of the version is paid", bounds("CHANGES=1 DROPS=0 RESTARTS=0")},
		{"OLD_SIGHT", "6: the debt counts from when *that version* was first seen", bounds("V=4 CHANGES=2 DROPS=0 RESTARTS=0")},
		{"DEBT_GRANT", "6: the debt is at least the remaining validity", bounds("V=4 CHANGES=1 DROPS=0 RESTARTS=0")},
		{"DEBT_LAST", "6: what an earlier mode granted outlasts a second change (an earlier wording)", bounds("V=4 CHANGES=2 DROPS=0 RESTARTS=0")},
		{"REBIND", "7: the role key is bound anew by compare-and-swap on the record", bounds("FAILSAFE CHANGES=1 DROPS=1 RESTARTS=0")},
	},
	reached: []check{
		{"ROUND", "peer mode, both passives listed, a full promise", bounds("CHANGES=1 DROPS=0 RESTARTS=0")},
		{"LIST", "a silent passive was struck off, and validity is full again", bounds("CHANGES=2 DROPS=0 RESTARTS=0")},
		{"BACK", "back in store mode, and validity is full again", bounds("CHANGES=2 DROPS=0 RESTARTS=0")},
		{"ALONE", "`failsafe`: the role key is gone, and the peers keep the holder valid", bounds("FAILSAFE CHANGES=1 DROPS=1 RESTARTS=0")},
		{"REBOUND", "`failsafe`: the role key is bound anew", bounds("FAILSAFE CHANGES=1 DROPS=1 RESTARTS=0")},
		{"START", "a passive starts", bounds("CHANGES=1 DROPS=0 RESTARTS=1")},
		{"ORPHAN", "the next process adopts a claim whose process has ended", bounds("CHANGES=1 DROPS=0 RESTARTS=1")},
	},
}
