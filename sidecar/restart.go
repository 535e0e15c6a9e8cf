package sidecar

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// restartError is why a controller is stopped that is started again at once, because an operator
// wants so.
type restartError struct{ request election.Request }

func (e *restartError) Error() string {
	why := fmt.Sprintf("restart in place (%s)", e.request.By)
	if e.request.Reason != "" {
		why += ": " + e.request.Reason
	}
	return why
}

// restarted returns the request because of which the controller was stopped, or nil.
func restarted(err error) *restartError {
	var asked *restartError
	errors.As(err, &asked)
	return asked
}

// restarter receives requests for a restart in place, each once.
type restarter struct {
	asked chan election.Request // one that is not begun yet

	mu    sync.Mutex
	id    string // the latest request
	begun bool   // its controller was stopped
	done  bool   // and serves again
}

func newRestarter() *restarter { return &restarter{asked: make(chan election.Request, 1)} }

// take is for [election.Tenure.OnRestart].
func (r *restarter) take(request election.Request) (pending bool, refused string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if request.ID == r.id {
		return !r.done, ""
	}
	select {
	case r.asked <- request:
		r.id, r.begun, r.done = request.ID, false, false
		return true, ""
	default:
		return false, "another restart is under way"
	}
}

// begin is called when the controller is going to be stopped for the request.
func (r *restarter) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun = true
}

// finish is called when the controller serves again.
func (r *restarter) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = r.begun
}

// takeRestarts makes the reign carry out requests for a restart in place.
func (r *reign) takeRestarts() {
	r.tenure.OnRestart(func(d election.HolderDecision) bool {
		pending, refused := r.restarter.take(*d.Request)
		if refused != "" {
			r.cfg.Log.Warn().Str("reason", "cannot restart in place: "+refused).Str("by", d.Request.By).Msg("dropped a request")
		}
		return pending
	})
}

// servesAgain records a restart in place, once the controller serves again.
func (r *reign) servesAgain() {
	r.history.Restarted(election.Restart{At: time.Now().UTC(), Why: r.history.EndedBy, Outage: election.ToMillis(r.cfg.Clock().Sub(r.downSince)), AtMost: r.history.EndAtMost})
	r.restarter.finish()
}
