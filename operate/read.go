package operate

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/tanist/tanist/election"
)

// ReadVIPHosts returns the hosts on which tanist vip runs. It skips unreadable entries.
func ReadVIPHosts(ctx context.Context, keys election.Keys) ([]election.VIPHost, error) {
	entries, err := keys.List(ctx, election.VIPPrefix)
	if err != nil {
		return nil, err
	}
	var hosts []election.VIPHost
	for _, e := range entries {
		if h, err := election.DecodeVIPHost(e.Value); err == nil {
			hosts = append(hosts, h)
		}
	}
	return hosts, nil
}

// ReadAgents returns the agents that are present. It skips unreadable entries.
func ReadAgents(ctx context.Context, keys election.Keys) ([]election.Agent, error) {
	entries, err := keys.List(ctx, election.AgentPrefix)
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

// ReadHistory returns the reigns, newest first. It skips unreadable entries.
func ReadHistory(ctx context.Context, keys election.Keys) ([]election.History, error) {
	entries, err := keys.List(ctx, election.HistoryPrefix)
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
	for i := range max(0, len(all)-1) {
		whole(&all[i], all[i+1])
	}
	return all, nil
}

// whole adds to the outage of a reign what only the holder before could tell: how long its
// controller had failed before it was stopped, and when it ended if nobody else saw that.
func whole(h *election.History, before election.History) {
	if before.Term != h.Term-1 || before.Ended.IsZero() {
		return
	}
	if !h.OutageAtLeast {
		if !h.OutageAtMost && h.Outage > 0 {
			h.Outage += before.EndDetect
			h.OutageAtMost = before.EndAtMost
		}
		return
	}
	sinceEnd := election.ToMillis(h.When.Sub(before.Ended)) // by the clocks of two hosts, perhaps
	h.Outage = max(h.Outage, sinceEnd+before.EndStop+before.EndDetect)
}

// ReadGone returns the members that are not among the present controllers. It skips unreadable
// entries.
func ReadGone(ctx context.Context, keys election.Keys, present []election.Controller) ([]election.Member, error) {
	entries, err := keys.List(ctx, election.MemberPrefix)
	if err != nil {
		return nil, err
	}
	var gone []election.Member
	for _, e := range entries {
		m, err := election.DecodeMember(e.Value)
		if err == nil && !slices.ContainsFunc(present, func(c election.Controller) bool { return c.Name == m.Name }) {
			gone = append(gone, m)
		}
	}
	return gone, nil
}
