package daemon

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process"
	"github.com/tanist/tanist/vip"
)

// VIP holds the addresses of a file while its controller is active, until ctx ends.
func VIP(ctx context.Context, l *config.Loaded, self Self) (err error) {
	var down teardown
	defer down.unwind(&err)
	c := l.VIP
	log := self.Log.With().Str("cluster", c.Cluster).Str("vip", c.Name).Logger()
	addresses, err := parseAddresses(c.VirtualIP)
	if err != nil {
		return exit.With(exit.Config, l.Problems(err))
	}
	store, err := OpenStore(StoreOf(l), log)
	if err != nil {
		return err
	}
	down.add(store.Close)
	if err := checkLogin(ctx, store, StoreOf(l)); err != nil {
		return err
	}
	book, err := holdAddresses(ctx, addresses, filepath.Join(c.StateDir, process.StateName(c.Cluster, "vip."+c.Name)), log)
	if err != nil {
		return err
	}
	down.add(book.close)
	presence, err := vipPresence(c, store, book, self, log)
	if err != nil {
		return err
	}
	follower := vip.NewFollower(c.Controller, store, book.holder, log)
	server := vipServer(c, follower, book, self, log)
	if err := listen(server, config.Listen{HTTP: c.Listen.HTTP}); err != nil {
		return err
	}
	down.beside(ctx, server.Run, presence, process.ReapOrphans) // as PID 1 in a container nobody else reaps
	notifySystemd("READY=1")
	log.Info().Str("version", self.Version).Int("pid", os.Getpid()).Str("controller", c.Controller).Msg("started")
	err = follower.Run(ctx)
	notifySystemd("STOPPING=1")
	return err
}

// vipPresenceTTL is how long the status outlives a tanist vip that died. It is the shortest TTL of a
// Consul session.
const vipPresenceTTL = 10 * time.Second

// vipPresence returns a function that shows in the store what this process holds, until its context
// ends. The addresses do not depend on it: a login without the right to write the status holds them
// too.
func vipPresence(c *config.VIP, store Store, book *addressBook, self Self, log zerolog.Logger) (func(context.Context), error) {
	home, err := process.HostID()
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	me := election.VIPHost{
		Name: c.Name, Controller: c.Controller, Incarnation: rand.Text(), Version: self.Version, Host: host, Home: home, PID: os.Getpid(),
	}
	alive, key, problem := processAlive(home), election.VIPKey(c.Name), ""
	p := &election.Presence{
		Store: store, TTL: vipPresenceTTL, Names: []string{key},
		Owner: func(value []byte) election.Owner {
			other, err := election.DecodeVIPHost(value)
			if err != nil {
				return election.Owner{Gone: true}
			}
			lives, known := alive(election.Controller{Host: other.Home, PID: other.PID})
			return election.Owner{
				Ours: other.Incarnation == me.Incarnation, Gone: known && !lives,
				Who: fmt.Sprintf("the tanist vip with PID %d on %.100s", other.PID, other.Host),
			}
		},
		Tried: func(err error) {
			switch {
			case err == nil:
				problem = ""
			case err.Error() != problem:
				problem = err.Error()
				log.Warn().Err(err).Msg("cannot write the status to the store; retrying")
			}
		},
	}
	book.showTo(func(all []election.VirtualIP) {
		status := me
		status.VirtualIPs = all
		p.Set(key, status.Encode())
	})
	return func(ctx context.Context) {
		if err := p.Run(ctx); err != nil {
			log.Error().Err(err).Msg("another tanist vip has this name; the status is not written to the store")
		}
	}, nil
}

// followedAddresses is the status document of tanist vip.
type followedAddresses struct {
	vip.FollowerStatus
	VirtualIPs []vip.Status `json:"virtual_ips"`
}

func vipServer(c *config.VIP, follower *vip.Follower, book *addressBook, self Self, log zerolog.Logger) *api.Server {
	status := func() followedAddresses { return followedAddresses{follower.Status(), book.holder.Statuses()} }
	answer := func(yes func(vip.FollowerStatus) bool) api.Answer {
		return func() (bool, any) { s := status(); return yes(s.FollowerStatus), s }
	}
	return api.New(restricted(api.Config{
		Answers: map[string]api.Answer{
			"/live":   answer(func(vip.FollowerStatus) bool { return true }),
			"/ready":  answer(func(s vip.FollowerStatus) bool { return s.Error == "" }),
			"/":       answer(func(s vip.FollowerStatus) bool { return s.Holding }),
			"/active": answer(func(s vip.FollowerStatus) bool { return s.Holding }),
		},
		Documents: map[string]api.Document{"/v1/status": func(context.Context) (any, error) { return status(), nil }},
		Metrics: []prometheus.Collector{
			api.Gauges{Constant: map[string]string{"cluster": c.Cluster, "controller": c.Controller}, Samples: book.samples}, self.metrics(c.Cluster),
		},
		Log: log,
	}, c.Listen))
}
