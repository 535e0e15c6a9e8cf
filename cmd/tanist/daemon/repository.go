package daemon

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/process"
)

// fenceAdapter adapts the repository's fence to the sidecar's interface.
type fenceAdapter struct{ *postgres.Fence }

func (f fenceAdapter) Assert(ctx context.Context, term election.Term) error {
	err := f.Fence.Assert(ctx, term)
	if errors.Is(err, postgres.ErrTerm) {
		return superseded{err}
	}
	return err
}

type superseded struct{ error }

func (superseded) Superseded() bool { return true }

func (s superseded) Unwrap() error { return s.error }

// makeFence makes the configured fence, or returns nil. If there is a gate, accompany receives it
// for each term before the fence is open.
func makeFence(c *config.Controller, stats *fenceStats, accompany func(*process.Companion), log zerolog.Logger) (*postgres.Fence, error) {
	r := c.Repository
	if r == nil {
		return nil, nil
	}
	readDSN := func() (string, error) {
		dsn, err := SecretFile(r.DSNFile)
		return strings.TrimSpace(dsn), err
	}
	dsn, err := readDSN()
	if err != nil {
		return nil, exit.Errorf(exit.Config, "repository.dsn_file: %v", err)
	}
	secret := postgres.Secret{Env: r.Secret.Env, Passfile: r.Secret.Passfile}
	if f := r.Secret.File; f != nil {
		secret.File = &postgres.SecretFile{Template: f.Template, Path: f.Path}
	}
	if c.Run.User != "" {
		uid, gid, err := ids(c.Run.User)
		if err != nil {
			return nil, exit.Errorf(exit.Config, "run.user: %v", err)
		}
		secret.Owner = &postgres.Owner{UID: uid, GID: gid}
	}
	if g := r.Secret.Gate; g != nil {
		if secret.Gate, err = makeGate(c, readDSN, secret.Owner, accompany); err != nil {
			return nil, exit.With(exit.Config, err)
		}
	}
	fence, err := postgres.NewFence(postgres.Config{
		Cluster: c.Cluster, Controller: c.Name, Role: r.Role, DSN: dsn, ReadDSN: readDSN, GiveUp: r.GiveUp, Secret: secret, Log: log,
		Observe: stats.add,
	})
	if err != nil {
		return nil, exit.With(exit.Config, err)
	}
	return fence, nil
}

// CheckRepository reports what would make the fence of a sidecar hollow or slow, with the sidecar's
// own login.
func CheckRepository(ctx context.Context, cluster string, r *config.Repository) ([]postgres.Finding, error) {
	dsn, err := SecretFile(r.DSNFile)
	if err != nil {
		return nil, fmt.Errorf("repository.dsn_file: %v", err)
	}
	return postgres.Check(ctx, postgres.CheckOptions{DSN: strings.TrimSpace(dsn), Cluster: cluster, Role: r.Role, GiveUp: r.GiveUp})
}

func ids(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return 0, 0, err
		}
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}
