package daemon

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

// OperationDocument is an operation that was begun over the REST interface.
type OperationDocument struct {
	State string `json:"state" doc:"running, done or failed"`
	election.Audit
	Said []string `json:"said" doc:"what happened until now, in lines for people"`
}

const (
	stateRunning = "running"
	stateDone    = "done"
	stateFailed  = "failed"
)

// operationsPath is below which operations are shown.
const operationsPath = "/v1/operations"

// operations are those that were begun over the REST interface of this process. They are carried out
// by package operate, as the commands are. The latest ones are kept in memory; the store has their
// records.
type operations struct {
	ctx     context.Context // of those that are running
	cluster string
	self    string // the controller of this sidecar
	store   operate.Store
	log     zerolog.Logger

	running sync.WaitGroup
	mu      sync.Mutex
	all     []*OperationDocument // oldest first
	open    int
}

const (
	operationsKept   = 100
	operationsAtOnce = 16
	// operationWithin bounds how long an operation is followed. What it asked for may continue.
	operationWithin = 10 * time.Minute
)

func newOperations(ctx context.Context, cluster, self string, store operate.Store, log zerolog.Logger, down *teardown) *operations {
	ctx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	o := &operations{ctx: ctx, cluster: cluster, self: self, store: store, log: log}
	down.add(func() error {
		stop(errors.New("this sidecar ended; what was requested continues: see `tanist list`"))
		o.running.Wait()
		return nil
	})
	return o
}

// document returns one of them.
func (o *operations) document(ctx context.Context, id string) (any, error) {
	o.mu.Lock()
	for _, d := range o.all {
		if d.ID == id {
			found := d.copied()
			o.mu.Unlock()
			return found, nil
		}
	}
	o.mu.Unlock()
	records, err := operate.ReadAudit(ctx, o.store) // of another sidecar, a command, or an earlier process
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(records, func(a election.Audit) bool { return a.ID == id }); i >= 0 {
		return ofRecord(records[i]), nil
	}
	return nil, &api.Refusal{Status: http.StatusNotFound, Detail: "there is no such operation; the latest ones are at " + operationsPath}
}

// list returns the records of the cluster, newest first.
func (o *operations) list(ctx context.Context) (any, error) {
	return operate.ReadAudit(ctx, o.store)
}

func ofRecord(a election.Audit) OperationDocument {
	d := OperationDocument{State: stateFailed, Audit: a, Said: []string{}}
	switch a.Outcome {
	case election.OutcomeOpen:
		d.State = stateRunning
	case election.OutcomeDone:
		d.State = stateDone
	}
	return d
}

func (d *OperationDocument) copied() OperationDocument {
	c := *d
	c.Said = slices.Clone(d.Said)
	return c
}

// begin checks and begins a verb for a caller. What takes time is followed in the background.
func (o *operations) begin(r *http.Request, from api.Caller, v operate.Verb, force bool) (api.Result, error) {
	c := &operate.Cluster{Name: o.cluster, Store: o.store, By: from.Name}
	log := o.log.With().Str("by", from.Name).Str("via", from.Via).Stringer("role", from.Role).Str("command", v.Command()).Logger()
	refused := func(err error) (api.Result, error) {
		log.Warn().Err(err).Msg("an operation is refused")
		return api.Result{}, refusal(err)
	}
	if err := c.Look(r.Context()); err != nil {
		return refused(err)
	}
	if err := v.Check(r.Context(), c); err != nil {
		return refused(err)
	}
	if g, ok := v.(interface {
		GivesUp(*operate.Cluster) ([]string, string)
	}); ok && !force {
		if lines, needs := g.GivesUp(c); needs != "" {
			return api.Result{}, &api.Refusal{Status: http.StatusConflict, Detail: needs + ": read what is given up, then send force: true", GivesUp: lines}
		}
	}
	if !o.enter() {
		return api.Result{}, &api.Refusal{Status: http.StatusServiceUnavailable, Detail: "too many operations run at once: see " + operationsPath}
	}
	op, unrecorded, err := c.Begin(r.Context(), v, operate.Asker{Via: from.Via, Role: from.Role.String()})
	o.unrecorded(unrecorded)
	if err != nil {
		o.leave()
		return refused(err)
	}
	log = log.With().Str("operation", op.ID).Logger()
	log.Info().Msg("an operation begins")
	d := o.keep(op)
	o.running.Go(func() {
		defer o.leave()
		ctx, cancel := context.WithTimeout(o.ctx, operationWithin)
		defer cancel()
		unrecorded, err := op.Follow(ctx, func(line string) { o.change(func() { d.Said = append(d.Said, line) }) })
		o.unrecorded(unrecorded)
		o.change(func() { d.Audit, d.State = op.Record(), ofRecord(op.Record()).State })
		log.Info().Str("outcome", op.Record().Outcome).AnErr("err", err).Msg("an operation ended")
	})
	o.mu.Lock()
	defer o.mu.Unlock()
	return api.Result{Document: d.copied(), Location: operationsPath + "/" + op.ID}, nil
}

func (o *operations) change(do func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	do()
}

// keep keeps an operation, in place of the oldest one.
func (o *operations) keep(op *operate.Operation) *OperationDocument {
	d := ofRecord(op.Record())
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, &d)
	o.all = slices.Clone(o.all[max(0, len(o.all)-operationsKept):])
	return &d
}

func (o *operations) enter() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open >= operationsAtOnce {
		return false
	}
	o.open++
	return true
}

func (o *operations) leave() { o.change(func() { o.open-- }) }

func (o *operations) unrecorded(err error) {
	if err != nil {
		o.log.Warn().Err(err).Msg("cannot record an operation in the store")
	}
}

// refusal converts the error of a verb.
func refusal(err error) error {
	status := http.StatusConflict
	switch operate.KindOf(err) {
	case operate.Invalid:
		status = http.StatusBadRequest
	case operate.Unknown:
		status = http.StatusNotFound
	case operate.Unreachable, operate.Denied:
		status = http.StatusServiceUnavailable
	}
	return &api.Refusal{Status: status, Detail: operate.Clean(err.Error())}
}

// The bodies of requests.
type (
	reasonBody struct {
		Reason string `json:"reason,omitempty" doc:"why, for the records"`
	}
	switchoverBody struct {
		To     string `json:"to,omitempty" doc:"the target; without it, any passive that is ready"`
		At     string `json:"at,omitempty" doc:"when: 15:04, an RFC 3339 time, or +45m; without it, now"`
		Reason string `json:"reason,omitempty" doc:"why, for the history"`
	}
	restartBody struct {
		At     string `json:"at,omitempty" doc:"when: 15:04, an RFC 3339 time, or +45m; without it, now"`
		Reason string `json:"reason,omitempty" doc:"why, for the history"`
	}
	pauseBody struct {
		For    string `json:"for,omitempty" doc:"how long, such as 2h; without it, until an operator ends it"`
		Reason string `json:"reason,omitempty" doc:"why, shown by list, explain and events"`
	}
	failoverBody struct {
		To     string `json:"to,omitempty" doc:"the target; without it, the unlisted one with the highest priority"`
		Reason string `json:"reason,omitempty" doc:"why, for the history"`
		Force  bool   `json:"force,omitempty" doc:"do it although it is refused; the refusal names what is given up"`
	}
	deadBody struct {
		Name   string `json:"name" doc:"the controller that was active"`
		Reason string `json:"reason,omitempty" doc:"how it is known, for the record"`
		Force  bool   `json:"force,omitempty" doc:"you confirm it; the refusal without it names what is given up"`
	}
)

// moveWithin is how long an operation waits for a controller to serve.
const moveWithin = 5 * time.Minute

// writes returns the routes that change something.
func (o *operations) writes() map[string]api.Write {
	w := map[string]api.Write{}
	add := func(pattern, summary string, role api.Role, body func() any, do func(*http.Request, api.Caller, any) (api.Result, error)) {
		w[pattern] = api.Write{Summary: summary, Role: role, Body: body, Returns: OperationDocument{}, Do: do}
	}
	plain := func(pattern, summary string, role api.Role, verb func(r *http.Request, reason string) operate.Verb) {
		add(pattern, summary, role, func() any { return &reasonBody{} }, func(r *http.Request, from api.Caller, body any) (api.Result, error) {
			return o.begin(r, from, verb(r, body.(*reasonBody).Reason), false)
		})
	}
	add("POST /v1/switchover", "Make another controller active, as a planned move", api.RoleOperator, func() any { return &switchoverBody{} }, o.switchover)
	add("PUT /v1/pause", "Suspend failovers and switchovers", api.RoleOperator, func() any { return &pauseBody{} }, o.pause)
	add("POST /v1/failover", "Make a passive take over that would not do so by itself, while nobody is active", api.RoleAdmin, func() any { return &failoverBody{} },
		func(r *http.Request, from api.Caller, body any) (api.Result, error) {
			b := body.(*failoverBody)
			return o.begin(r, from, &operate.Failover{To: b.To, Reason: b.Reason, Force: b.Force, Timeout: moveWithin}, b.Force)
		})
	add("POST /v1/confirm-dead", "Confirm that the last holder is dead, so that nobody waits for it", api.RoleAdmin, func() any { return &deadBody{} },
		func(r *http.Request, from api.Caller, body any) (api.Result, error) {
			b := body.(*deadBody)
			if b.Name == o.self {
				return api.Result{}, &api.Refusal{Status: http.StatusConflict, Detail: "the sidecar of " + b.Name + " has read this, so it is not dead: POST /v1/switchover moves the active"}
			}
			return o.begin(r, from, &operate.ConfirmDead{Name: b.Name, Reason: b.Reason, Timeout: moveWithin}, b.Force)
		})
	plain("DELETE /v1/pause", "End a pause", api.RoleOperator, func(*http.Request, string) operate.Verb { return &operate.Resume{} })
	plain("DELETE /v1/request", "Cancel a request, such as a switchover, that has not begun", api.RoleOperator, func(*http.Request, string) operate.Verb { return &operate.Cancel{} })
	add("POST /v1/restart", "Restart the active controller in place", api.RoleOperator, func() any { return &restartBody{} }, o.restart)
	for _, k := range []struct {
		what string
		ban  bool
		role api.Role
	}{{"standby", false, api.RoleOperator}, {"ban", true, api.RoleAdmin}} {
		add("PUT /v1/"+k.what+"s/{name}", "Keep a controller from becoming active ("+k.what+"); an active one is moved away first", k.role, func() any { return &pauseBody{} },
			func(r *http.Request, from api.Caller, body any) (api.Result, error) {
				v := &operate.KeepOut{Name: r.PathValue("name"), Reason: body.(*pauseBody).Reason, Ban: k.ban, Timeout: moveWithin}
				if err := forTime(body.(*pauseBody).For, &v.For); err != nil {
					return api.Result{}, err
				}
				return o.begin(r, from, v, false)
			})
		plain("DELETE /v1/"+k.what+"s/{name}", "End a "+k.what, k.role,
			func(r *http.Request, _ string) operate.Verb {
				return &operate.LetIn{Name: r.PathValue("name"), Ban: k.ban}
			})
	}
	plain("DELETE /v1/members/{name}", "Remove a controller that will not come back from the list", api.RoleAdmin,
		func(r *http.Request, _ string) operate.Verb { return &operate.Forget{Name: r.PathValue("name")} })
	return w
}

func (o *operations) switchover(r *http.Request, from api.Caller, body any) (api.Result, error) {
	b := body.(*switchoverBody)
	v := &operate.Switchover{To: b.To, Reason: b.Reason, Timeout: moveWithin}
	if err := atTime(b.At, &v.At); err != nil {
		return api.Result{}, err
	}
	return o.begin(r, from, v, false)
}

// atTime reads the field at.
func atTime(text string, to *time.Time) error {
	when, err := operate.ParseWhen(text, time.Now())
	if err != nil {
		return &api.Refusal{Status: http.StatusBadRequest, Detail: "at: " + err.Error()}
	}
	if text != "" {
		*to = when
	}
	return nil
}

func (o *operations) pause(r *http.Request, from api.Caller, body any) (api.Result, error) {
	b := body.(*pauseBody)
	v := &operate.Pause{Reason: b.Reason}
	if err := forTime(b.For, &v.For); err != nil {
		return api.Result{}, err
	}
	return o.begin(r, from, v, false)
}

// forTime reads the field for.
func forTime(text string, to *time.Duration) (err error) {
	if text == "" {
		return nil
	}
	if *to, err = time.ParseDuration(text); err != nil {
		return &api.Refusal{Status: http.StatusBadRequest, Detail: "for: it is not a duration: write one like 30m or 2h"}
	}
	return nil
}

func (o *operations) restart(r *http.Request, from api.Caller, body any) (api.Result, error) {
	b := body.(*restartBody)
	v := &operate.Restart{Reason: b.Reason, Timeout: moveWithin}
	if err := atTime(b.At, &v.At); err != nil {
		return api.Result{}, err
	}
	return o.begin(r, from, v, false)
}

// grantsOf returns who may do what.
func grantsOf(l config.Listen) []api.Grant {
	var all []api.Grant
	for _, a := range l.Access {
		role, _ := api.ParseRole(a.Role) // it has been checked
		g := api.Grant{Role: role, User: a.User, Group: a.Group, Certificate: a.Certificate}
		if a.TokenFile != "" {
			g.Tokens = func() ([]string, error) { return config.Tokens(a.TokenFile) }
			if g.Name = a.Name; g.Name == "" {
				g.Name = filepath.Base(a.TokenFile)
			}
		}
		all = append(all, g)
	}
	return all
}
