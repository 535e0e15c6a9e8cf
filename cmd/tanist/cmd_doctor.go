package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/backends/consul"
	"github.com/tanist/tanist/backends/etcd"
	pgstore "github.com/tanist/tanist/backends/postgres"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
	"github.com/tanist/tanist/postgres"
)

// finding is the result of one of doctor's checks.
type finding struct {
	Level string `json:"level"` // ok, warning or failure
	About string `json:"about"`
	Text  string `json:"text"` // the state, and if there is a problem, what to do
}

const (
	levelOK      = "ok"
	levelWarning = "warning"
	levelFailure = "failure"
)

func doctorCommand() *cobra.Command {
	var a access
	var d display
	cmd := &cobra.Command{
		Use: "doctor", Short: "Find problems, present and coming: store, rights, round trips, versions, timings", Args: noArgs,
		Long: "Find problems, present and coming. Nothing is changed: whether keys may be written is tested with writes whose\n" +
			"precondition can't hold. Exit codes: 0 nothing fails (there may be warnings), 1 something does, 69 no store, 77 no access, 78 the file.",
		Example: "  tanist doctor -c orders.yml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := d.check(); err != nil {
				return err
			}
			return a.with(cmd, func(ctx context.Context, s daemon.Store, c daemon.StoreConfig) error {
				var found []finding
				err := d.show(ctx, cmd.OutOrStdout(), func() (any, func(io.Writer), error) {
					var err error
					found, err = examine(ctx, s, c)
					return found, func(out io.Writer) { findingsTable(out, found) }, err
				})
				if err != nil {
					return err
				}
				if n := len(slices.DeleteFunc(found, func(f finding) bool { return f.Level != levelFailure })); n > 0 {
					return exit.Errorf(exit.Failure, "%s found in %s", plural(n, "failure"), c.Cluster)
				}
				return nil
			})
		},
	}
	a.flags(cmd)
	d.flags(cmd)
	return cmd
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func findingsTable(out io.Writer, found []finding) {
	mark := map[string]string{levelOK: "✓", levelWarning: "!", levelFailure: "✗"}
	for _, f := range found {
		fmt.Fprintf(out, " %s %-12s %s\n", mark[f.Level], f.About, clean(f.Text))
	}
}

// examine runs all checks. The store has already responded once.
func examine(ctx context.Context, s daemon.Store, c daemon.StoreConfig) ([]finding, error) {
	var all []finding
	add := func(level, about, format string, args ...any) {
		all = append(all, finding{level, about, fmt.Sprintf(format, args...)})
	}
	if c.File != "" {
		add(levelOK, "config", "%s is valid", c.File)
	}
	examineServers(ctx, s, add)
	snap, err := examineRoundTrip(ctx, s, c, add)
	if err != nil {
		return nil, err
	}
	examineRights(ctx, s, c, add)
	examineCluster(snap, add)
	examineVirtualIPs(ctx, c, snap, add)
	examineRepository(ctx, c, add)
	examineUnit(ctx, c, add)
	return all, nil
}

// examineUnit checks the systemd unit of this controller: nothing else may start it.
func examineUnit(ctx context.Context, c daemon.StoreConfig, add addFinding) {
	if c.Controller == nil || c.Controller.Run.Driver != "systemd" {
		return
	}
	switch asked, err := daemon.CheckUnit(ctx, c.Controller); {
	case err != nil && asked:
		add(levelFailure, "unit", "%v", err)
	case err != nil:
		add(levelWarning, "unit", "%v", err)
	default:
		add(levelOK, "unit", "%s is started by nothing but Tanist", c.Controller.Run.Unit)
	}
}

// examineRepository evaluates the conditions of the fence with the login of the file's sidecar.
func examineRepository(ctx context.Context, c daemon.StoreConfig, add addFinding) {
	if c.Repository == nil {
		return
	}
	found, err := daemon.CheckRepository(ctx, c.Cluster, c.Repository)
	if err != nil {
		add(levelFailure, "repository", "%v", err)
		return
	}
	bad := false
	for _, f := range found {
		level := levelWarning
		if f.Severity == postgres.Refuse {
			level = levelFailure
		}
		bad = bad || f.Severity != postgres.Advise
		add(level, "repository", "%s; %s", f.Text, f.Do)
	}
	if !bad {
		add(levelOK, "repository", "nothing makes the fence ineffective")
	}
}

type addFinding func(level, about, format string, args ...any)

func examineServers(ctx context.Context, s daemon.Store, add addFinding) {
	switch s := s.(type) {
	case *consul.Store:
		for _, agent := range s.Agents(ctx) {
			version := agent.Version
			if version == "" {
				version = "of a version that this token may not read"
			}
			switch {
			case agent.Err != nil:
				add(levelWarning, "server", "%s does not answer: %v", agent.Address, agent.Err)
			case agent.Leader == "":
				add(levelFailure, "server", "%s answers: Consul %s, and knows of no leader of the servers", agent.Address, version)
			default:
				add(levelOK, "server", "%s answers: Consul %s; the servers' leader is %s", agent.Address, version, agent.Leader)
			}
		}
	case *pgstore.Store:
		if is, err := s.Server(ctx); err != nil {
			add(levelWarning, "server", "%v", err)
		} else {
			add(levelOK, "server", "%s answers: PostgreSQL %s", is.Address, is.Version)
		}
	case *etcd.Store:
		for _, server := range s.Versions(ctx) {
			leader := ""
			if server.Leader {
				leader = ", etcd's leader"
			}
			if server.Err != nil {
				add(levelWarning, "server", "%s does not answer: %v", server.Endpoint, server.Err)
			} else {
				add(levelOK, "server", "%s answers: etcd %s%s", server.Endpoint, server.Version, leader)
			}
		}
	}
	if w, ok := s.(interface{ Warning(context.Context) string }); ok {
		if text := w.Warning(ctx); text != "" {
			add(levelWarning, "server", "%s", text)
		}
	}
}

// examineRoundTrip measures reads, which cost as much as renewals: both need a majority of the
// store.
func examineRoundTrip(ctx context.Context, s daemon.Store, c daemon.StoreConfig, add addFinding) (election.Snapshot, error) {
	var snap election.Snapshot
	took := make([]time.Duration, 0, 9)
	for range cap(took) {
		begun := time.Now()
		var err error
		if snap, err = read(ctx, s); err != nil {
			return snap, err
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	middle, worst := took[len(took)/2].Round(10*time.Microsecond), took[len(took)-1].Round(10*time.Microsecond)
	limit := c.Timing.Attempt()
	switch {
	case limit > 0 && worst > limit/2:
		add(levelWarning, "round trip", "%v, at worst %v, of the %v that a renewal may take: choose longer lease times, or a store that is nearer", middle, worst, limit)
	case limit > 0:
		add(levelOK, "round trip", "%v, at worst %v, of the %v that a renewal may take", middle, worst, limit)
	default:
		add(levelOK, "round trip", "%v, at worst %v", middle, worst)
	}
	return snap, nil
}

// never is a version that no key has.
const never = election.Version(1 << 62)

// examineRights attempts a write with a precondition that can't hold.
func examineRights(ctx context.Context, s daemon.Store, c daemon.StoreConfig, add addFinding) {
	who := map[string]string{
		election.RequestKey: "switchover", election.PauseKey: "pause and resume", election.StandbyKey: "standby and ban", election.DeadKey: "confirm-dead", election.ControllerKey("tanist-doctor"): "sidecars", election.AgentKey("tanist-doctor"): "agentwatches",
		election.VIPKey(c.Name): "its status", election.HistoryKey(0): "the history",
	}
	keys := []string{election.RequestKey, election.PauseKey, election.StandbyKey, election.DeadKey, election.ControllerKey("tanist-doctor"), election.HistoryKey(0), election.AgentKey("tanist-doctor")}
	switch {
	case c.Agents:
		keys = keys[len(keys)-1:]
	case c.Follows:
		keys = []string{election.VIPKey(c.Name)}
	}
	var may []string
	for _, key := range keys {
		limited, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
		version := never
		err := s.Put(limited, election.Put{Key: key, Value: []byte("{}"), If: &version})
		cancel()
		switch {
		case errors.Is(err, election.ErrConflict):
			may = append(may, who[key])
		case errors.Is(err, election.ErrReadOnly):
			add(levelFailure, "writes", "nobody can claim: %v", err)
			return
		case errors.Is(err, election.ErrDenied):
			add(levelWarning, "rights", "this login may not write %s, which is for %s: %v", key, who[key], err)
		default:
			add(levelFailure, "rights", "cannot determine whether %s may be written: %v", key, err)
		}
	}
	if len(may) > 0 {
		add(levelOK, "rights", "this login may write what is needed for %s", strings.Join(may, ", "))
	}
}

func examineCluster(snap election.Snapshot, add addFinding) {
	switch {
	case snap.ActiveBad != nil:
		add(levelFailure, "role key", "it is unreadable, so nobody is followed: %v: find out who wrote it", snap.ActiveBad)
	case snap.Active != nil && snap.ActiveLease == "":
		add(levelFailure, "role key", "it is bound to no lease: somebody wrote it by hand; the sidecars remove it")
	case snap.Active.Serving():
		add(levelOK, "active", "%s serves at %s, term %d", snap.Active.Controller, snap.Active.URL, snap.Active.Term)
	case snap.Active != nil:
		add(levelWarning, "active", "%s holds the lease, term %d, and is %s: %s", snap.Active.Controller, snap.Active.Term, snap.Active.State, snap.Active.Reason)
	default:
		add(levelFailure, "active", "nobody holds the lease: see `tanist explain`")
	}
	ready := 0
	ttls, versions := map[string][]string{}, map[string][]string{}
	for _, k := range snap.Controllers {
		ttls[k.LeaseTTL] = append(ttls[k.LeaseTTL], k.Name)
		versions[k.Version] = append(versions[k.Version], k.Name)
		switch {
		case operate.Holds(snap, k.Name):
		case k.Fit():
			ready++
		default:
			add(levelWarning, "passive", "%s would not take over: %s%s", k.Name, k.State, because(k.Reason))
		}
	}
	switch ready {
	case 0:
		add(levelWarning, "passive", "no passive is ready to take over: a fault of the active is an outage")
	default:
		add(levelOK, "passive", "%d ready to take over", ready)
	}
	if len(ttls) > 1 {
		add(levelWarning, "timings", "the sidecars have different lease times, which makes takeovers slow: %s", groups(ttls))
	}
	if len(versions) > 1 {
		add(levelWarning, "versions", "the sidecars are of different versions: %s", groups(versions))
	}
	if snap.Pause != nil {
		add(levelWarning, "pause", "%s paused the cluster: nothing fails over until `tanist resume`", snap.Pause.By)
	}
	for _, name := range slices.Sorted(maps.Keys(snap.Standbys)) {
		if operate.Holds(snap, name) {
			add(levelWarning, "standby", "%s is %s, and holds the lease%s", name, snap.Standbys[name].Words(name), standbyNote(snap, name))
		}
	}
	if snap.StandbyBad != nil {
		add(levelFailure, "standby", "%v: `tanist standby --reset` removes it", snap.StandbyBad)
	}
	if snap.TermBad != nil {
		add(levelFailure, "term", "%v: find out who wrote it", snap.TermBad)
	}
	if snap.RequestBad != nil {
		add(levelFailure, "request", "%v: `tanist cancel` removes it", snap.RequestBad)
	}
	if r := snap.Request; r != nil {
		add(levelWarning, "request", "a %s requested by %s is waiting: `tanist cancel` withdraws it", r.Op, r.By)
	}
}

func groups(of map[string][]string) string {
	var all []string
	for value, names := range of {
		all = append(all, fmt.Sprintf("%s (%s)", value, strings.Join(names, ", ")))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
