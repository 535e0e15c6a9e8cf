package postgres

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Server is what the server is.
type Server struct {
	Address     string
	Version     string
	Clock       string // what leases are counted by: "uptime", or "wall" where that can't be read
	Unsafe      string // settings that are off without which a crash of its host loses commits
	Replicas    int    // standbys that are connected
	Synchronous bool   // commits wait for one of them
}

// Server asks the server what it is.
func (s *Store) Server(ctx context.Context) (Server, error) {
	return repeatable(ctx, s, "ask the server", func(ctx context.Context, l *link) (Server, error) {
		scan := func(r pgx.Row, to *Server) error {
			return r.Scan(&to.Version, &to.Clock, &to.Unsafe, &to.Replicas, &to.Synchronous)
		}
		got, err := row(ctx, l, scan, "SELECT version, clock, unsafe, replicas, synchronous FROM tanist_store.server($1)", s.cfg.Cluster)
		got.Address = net.JoinHostPort(l.Config().Host, strconv.Itoa(int(l.Config().Port)))
		return got, err
	})
}

// Warning returns what weakens the promises of the store, or nothing.
func (s *Store) Warning(ctx context.Context) string {
	is, err := s.Server(ctx)
	if err != nil {
		return ""
	}
	return is.warning()
}

func (is Server) warning() string {
	var all []string
	if is.Unsafe != "" {
		all = append(all, fmt.Sprintf("with %s off, a crash of its host loses claims that were confirmed, or the whole database; turn it on", is.Unsafe))
	}
	if is.Clock != "uptime" {
		all = append(all, "leases are counted by the wall clock, because its time since boot can't be read: a step of that clock ends leases early, or late; "+
			"let a superuser run `tanist store init` on Linux, or keep the clock from stepping")
	}
	if is.Replicas > 0 && !is.Synchronous {
		all = append(all, "its standbys are asynchronous: the promotion of one loses claims and terms that it had not received; set synchronous_standby_names")
	}
	if len(all) == 0 {
		return ""
	}
	return "PostgreSQL at " + is.Address + ": " + strings.Join(all, "; ")
}
