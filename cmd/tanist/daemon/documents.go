package daemon

import (
	"context"
	"time"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/health"
	"github.com/tanist/tanist/operate"
	"github.com/tanist/tanist/sidecar"
)

// The JSON documents of the REST interface, which the commands print too.

func statusDocument(cluster string, v sidecar.View) election.SidecarRecord {
	s := election.SidecarRecord{
		Cluster: cluster, Controller: v.Status, Term: v.Term, LeaseLeftMS: election.ToMillis(v.LeaseLeft), Alone: v.Alone, Store: "ok",
	}
	if v.Store != nil {
		s.Store = v.Store.Error()
	}
	if v.Term == 0 {
		s.Decision, s.Why = v.Decision.Code, v.Decision.Why
	}
	return s
}

// clusterDocument never waits long for the store: instead it shows what the sidecar saw last,
// marked stale.
func clusterDocument(ctx context.Context, name string, v sidecar.View, backend election.Backend) election.ClusterRecord {
	c := election.ClusterOf(name, v.Snapshot)
	c.Stale = v.Store != nil
	if c.Stale {
		return c
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if snap, err := backend.Read(ctx); err == nil {
		c = election.ClusterOf(name, snap)
	} else {
		c.Stale = true
		return c
	}
	agents, err := operate.ReadAgents(ctx, backend)
	if err != nil {
		c.Stale = true
		return c
	}
	c.Agents = agents
	hosts, err := operate.ReadVIPHosts(ctx, backend)
	if err != nil {
		c.Stale = true
		return c
	}
	c.VIPHosts = hosts
	c.Gone, _ = operate.ReadGone(ctx, backend, c.Controllers) // only people read it
	return c
}

// described has what the OpenAPI description says of a sidecar's routes.
func described() map[string]api.Description {
	active := api.Description{Summary: "Whether this controller serves under a valid lease", Returns: election.SidecarRecord{}}
	return map[string]api.Description{
		"/": active, "/active": active, "/primary": active, "/leader": active, "/read-write": active,
		"/passive":               {Summary: "Whether this side is ready to take over", Returns: election.SidecarRecord{}},
		"/ready":                 {Summary: "Whether this side serves, or is ready to take over", Returns: election.SidecarRecord{}},
		"/live":                  {Summary: "Whether the process makes progress", Returns: election.SidecarRecord{}},
		"/v1/status":             {Summary: "This side: state, lease, last decision and its reason", Returns: election.SidecarRecord{}},
		election.ClusterDocument: {Summary: "The cluster, as tanist list -o json prints it", Returns: election.ClusterRecord{}},
		"/v1/history":            {Summary: "The reigns, newest first", Returns: []election.History{}},
		election.OutputDocument:  {Summary: "The last output of the controller's program", Returns: election.OutputRecord{}},
		"/v1/events":             {Summary: "The present state, and then every change"},
		operationsPath:           {Summary: "What operators asked for, newest first, as tanist audit -o json prints it", Returns: []election.Audit{}},
		operationsPath + "/{id}": {Summary: "One operation, and how it goes", Returns: OperationDocument{}},
		sidecar.AskPath:          {Summary: "A promise to a holder that has lost the store; signed with failsafe.secret_file"},
	}
}

// sidecarMetrics returns the metrics of one sidecar.
func sidecarMetrics(p *sidecarProcess, s *sidecar.Sidecar) api.Gauges {
	c := p.cfg
	return api.Gauges{
		Constant: map[string]string{"cluster": c.Cluster, "controller": c.Name},
		Samples: func() []api.Sample {
			v := s.View()
			refusal, warned := p.store.state()
			truth := func(b bool) float64 {
				if b {
					return 1
				}
				return 0
			}
			samples := []api.Sample{
				{Name: "tanist_term", Help: "The term of the present reign, or 0.", Value: float64(v.Term)},
				{Name: "tanist_lease_remaining_seconds", Help: "How long the lease is valid without another renewal.", Value: v.LeaseLeft.Seconds()},
				{Name: "tanist_store_up", Help: "Whether the store answers.", Value: truth(v.Store == nil)},
				{Name: "tanist_store_writable", Help: "Whether the store has not refused the last write that tried it.", Value: truth(refusal == nil)},
				{Name: "tanist_store_warning", Help: "Whether the store's servers complain of something: see tanist doctor.", Value: truth(warned)},
				{Name: "tanist_paused", Help: "Whether the cluster is paused.", Value: truth(v.Snapshot.Pause != nil)},
				{Name: "tanist_alone", Help: "Whether the reign continues without the store.", Value: truth(v.Alone)},
				{
					Name: "tanist_lease_renewals_total", Help: "Renewals of the present reign.", Counter: true,
					Labels: map[string]string{"result": "acknowledged"}, Value: float64(v.Renewals),
				},
				{
					Name: "tanist_lease_renewals_total", Help: "Renewals of the present reign.", Counter: true,
					Labels: map[string]string{"result": "failed"}, Value: float64(v.Failures),
				},
				{
					Name: "tanist_loop_last_tick_age_seconds", Help: "How long ago the sidecar's loop came round.",
					Value: election.BootClock().Sub(v.Ticked).Seconds(),
				},
			}
			samples = append(samples, p.self.samples()...)
			samples = append(samples, p.checkSamples(v)...)
			samples = append(samples, p.notices.samples()...)
			for _, why := range election.Whys() {
				samples = append(samples, api.Sample{
					Name: "tanist_takeovers_total", Help: "Reigns of this sidecar that served, by what had made it take over.", Counter: true,
					Labels: map[string]string{"reason": string(why)}, Value: float64(v.Takeovers[why]),
				})
			}
			for _, role := range []election.Role{election.RoleActive, election.RolePassive} {
				is := v.Status.Role == role && (role == election.RolePassive || v.LeaseLeft > 0)
				samples = append(samples, api.Sample{
					Name: "tanist_role", Help: "The role, as a set of states.", Labels: map[string]string{"role": string(role)}, Value: truth(is),
				})
			}
			for _, state := range []election.State{
				election.StateStarting, election.StateServing, election.StateStopping, election.StateReady, election.StateUnfit,
				election.StateYielding, election.StatePaused, election.StateStandby, election.StateUnlisted, election.StateFailed,
			} {
				samples = append(samples, api.Sample{
					Name: "tanist_state", Help: "What the sidecar is doing, as a set of states.",
					Labels: map[string]string{"state": string(state)}, Value: truth(v.Status.State == state),
				})
			}
			if c.Repository != nil {
				samples = append(samples, p.fence.samples()...)
			}
			return append(samples, p.book.samples()...)
		},
	}
}

// checkSamples returns the verdicts of the checks: of health while the controller runs, of fit while
// it does not. Others are old.
func (p *sidecarProcess) checkSamples(v sidecar.View) []api.Sample {
	up := func(metric, help, name string, is bool) api.Sample {
		s := api.Sample{Name: metric, Help: help, Labels: map[string]string{"check": name}}
		if is {
			s.Value = 1
		}
		return s
	}
	var samples []api.Sample
	switch v.Status.State {
	case election.StateServing, election.StateStarting:
		if p.checks == nil {
			break
		}
		for _, r := range p.checks.Status().Checks {
			if r.Verdict != health.Unknown {
				samples = append(samples, up("tanist_check_up", "Whether a health check of the controller is good.", r.Name, r.Verdict == health.Up))
			}
		}
	case election.StateReady, election.StateUnfit, election.StateYielding, election.StatePaused, election.StateStandby, election.StateUnlisted:
		for name, err := range p.fit.results() {
			samples = append(samples, up("tanist_fit_up", "Whether a check of fit is good.", name, err == nil))
		}
	}
	return samples
}
