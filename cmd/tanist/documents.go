package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/sidecar"
)

// The JSON documents of the REST interface; the commands print the same.

// status is what one sidecar says of itself.
type status struct {
	Cluster string `json:"cluster"`
	election.Controller
	Term        election.Term   `json:"term"`
	LeaseLeftMS election.Millis `json:"lease_left_ms"`
	Alone       bool            `json:"alone,omitempty"` // goes on without the store
	Store       string          `json:"store"`           // ok, or why it can't be reached
	Decision    election.Code   `json:"decision,omitempty"`
	Why         string          `json:"why,omitempty"`
}

func statusDocument(cluster string, v sidecar.View) status {
	s := status{
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

// cluster is the state of a whole cluster.
type cluster struct {
	Cluster     string                `json:"cluster"`
	Term        election.Term         `json:"term"`
	Active      *election.Active      `json:"active"`
	Controllers []election.Controller `json:"controllers"`
	Agents      []election.Agent      `json:"agents"`
	Pause       *election.Pause       `json:"pause,omitempty"`
	Request     *election.Request     `json:"request,omitempty"`
	Stale       bool                  `json:"stale"` // the store could not be asked; this is what was seen last
}

func clusterOf(name string, s election.Snapshot) cluster {
	c := cluster{
		Cluster: name, Term: s.Breadcrumb.Term, Active: s.Active, Controllers: s.Controllers, Agents: []election.Agent{},
		Pause: s.Pause, Request: s.Request,
	}
	if c.Controllers == nil {
		c.Controllers = []election.Controller{}
	}
	return c
}

// clusterDocument never waits long for the store: what the sidecar saw last is shown then, marked stale.
func clusterDocument(ctx context.Context, name string, v sidecar.View, backend election.Backend) cluster {
	c := clusterOf(name, v.Snapshot)
	c.Stale = v.Store != nil
	if c.Stale {
		return c
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if snap, err := backend.Read(ctx); err == nil {
		c = clusterOf(name, snap)
	} else {
		c.Stale = true
		return c
	}
	agents, err := readAgents(ctx, backend)
	if err != nil {
		c.Stale = true
		return c
	}
	c.Agents = agents
	return c
}

// readAgents returns the agents that are present; what can't be read is left out.
func readAgents(ctx context.Context, keys election.Keys) ([]election.Agent, error) {
	entries, err := keys.List(ctx, "agents/")
	if err != nil {
		return nil, err
	}
	agents := []election.Agent{}
	for _, e := range entries {
		var a election.Agent
		if json.Unmarshal(e.Value, &a) == nil && a.Name != "" {
			agents = append(agents, a)
		}
	}
	return agents, nil
}

// readHistory returns the reigns, the latest first; what can't be read is left out.
func readHistory(ctx context.Context, keys election.Keys) ([]election.History, error) {
	entries, err := keys.List(ctx, "history/")
	if err != nil {
		return nil, err
	}
	all := []election.History{}
	for _, e := range slices.Backward(entries) {
		var h election.History
		if json.Unmarshal(e.Value, &h) == nil && h.Term > 0 {
			all = append(all, h)
		}
	}
	return all, nil
}

// sidecarMetrics are the metrics of one sidecar.
func sidecarMetrics(c *config.Controller, s *sidecar.Sidecar, fence *fenceStats) api.Gauges {
	return api.Gauges{
		Constant: map[string]string{"cluster": c.Cluster, "controller": c.Name},
		Samples: func() []api.Sample {
			v := s.View()
			truth := func(b bool) float64 {
				if b {
					return 1
				}
				return 0
			}
			samples := []api.Sample{
				{Name: "tanist_build_info", Help: "The version that runs.", Labels: map[string]string{"version": versionText()}, Value: 1},
				{Name: "tanist_term", Help: "The term of the present reign, or 0.", Value: float64(v.Term)},
				{Name: "tanist_lease_remaining_seconds", Help: "How long the lease is valid without another renewal.", Value: v.LeaseLeft.Seconds()},
				{Name: "tanist_store_up", Help: "Whether the store answers.", Value: truth(v.Store == nil)},
				{Name: "tanist_paused", Help: "Whether the cluster is paused.", Value: truth(v.Snapshot.Pause != nil)},
				{Name: "tanist_alone", Help: "Whether the reign goes on without the store.", Value: truth(v.Alone)},
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
			for _, role := range []election.Role{election.RoleActive, election.RolePassive} {
				is := v.Status.Role == role && (role == election.RolePassive || v.LeaseLeft > 0)
				samples = append(samples, api.Sample{
					Name: "tanist_role", Help: "The role, as a set of states.", Labels: map[string]string{"role": string(role)}, Value: truth(is),
				})
			}
			for _, state := range []election.State{
				election.StateStarting, election.StateServing, election.StateStopping, election.StateReady, election.StateUnfit,
				election.StateYielding, election.StatePaused, election.StateFailed,
			} {
				samples = append(samples, api.Sample{
					Name: "tanist_state", Help: "What the sidecar is doing, as a set of states.",
					Labels: map[string]string{"state": string(state)}, Value: truth(v.Status.State == state),
				})
			}
			if c.Repository != nil {
				samples = append(samples, fence.samples()...)
			}
			return samples
		},
	}
}

// millis prints a number of milliseconds for people.
func millis(m election.Millis) string {
	switch d := time.Duration(float64(m) * float64(time.Millisecond)); {
	case m <= 0:
		return "-"
	case d < 10*time.Millisecond:
		return strconv.FormatFloat(float64(m), 'f', 1, 64) + "ms"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	default:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + "s"
	}
}
