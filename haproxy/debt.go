package haproxy

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/rs/zerolog"
)

// debt is a cut of sessions that is still due in old workers, which finish their sessions after a
// reload. The master can't be asked while it re-executes itself, so one attempt is not enough.
type debt struct {
	since  time.Time
	spared map[int]bool // workers that were current at the cut or later: their sessions were cut directly or are newer
}

// A debt is dropped after this; by then the built-in template's hard-stop-after has ended the old
// workers.
const debtLife = 5 * time.Minute

// owe records the backends whose active these commands remove.
func (r *run) owe(commands []string) {
	if r.master.path == "" {
		return
	}
	for _, c := range commands {
		if at, ok := strings.CutPrefix(c, "shutdown sessions server "); ok {
			backend, _, _ := strings.Cut(at, "/")
			r.debts[backend] = &debt{time.Now(), map[int]bool{}}
		}
	}
}

// payDebts cuts the sessions that are due, in the background: the new active does not wait for it.
func (r *run) payDebts() {
	for backend, d := range r.debts {
		d.spared[r.seen.pid] = true
		if time.Since(d.since) > debtLife {
			delete(r.debts, backend)
		}
	}
	if len(r.debts) == 0 || r.paying {
		return
	}
	r.paying = true
	owed := map[string]*debt{}
	spared := map[string]map[int]bool{}
	oldest := time.Now()
	for backend, d := range r.debts {
		owed[backend], spared[backend] = d, maps.Clone(d.spared)
		if d.since.Before(oldest) {
			oldest = d.since
		}
	}
	r.wg.Go(func() {
		ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
		defer cancel()
		left, err := r.master.cutOldWorkers(ctx, spared)
		r.post(func() {
			r.paying = false
			if err == nil && left == 0 {
				for backend, d := range owed {
					if r.debts[backend] == d { // otherwise it is due again
						delete(r.debts, backend)
					}
				}
				r.note(zerolog.WarnLevel, "old workers", "", "")
				return
			}
			if err == nil {
				err = fmt.Errorf("%d sessions are still there", left)
			}
			if time.Since(oldest) > 5*time.Second && r.said["old workers"] == "" {
				r.note(zerolog.WarnLevel, "old workers", oneLine(err.Error(), 200), "cannot cut sessions in old workers of HAProxy; retrying")
			}
		})
	})
}
