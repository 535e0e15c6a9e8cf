package daemon

import (
	"github.com/rs/zerolog"

	pgstore "github.com/tanist/tanist/backends/postgres"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/postgres"
)

func openPostgres(c StoreConfig, log zerolog.Logger) (Store, error) {
	s, err := pgstore.Open(pgstore.Config{
		Cluster: c.Cluster, DSN: c.Postgres.DSN, DSNFile: c.Postgres.DSNFile, PasswordFile: c.Postgres.PasswordFile,
		Accept: postgres.CheckDSN, RereadEvery: c.Reread, Log: log,
	})
	if err != nil {
		return nil, exit.Errorf(exit.Config, "%v", err)
	}
	return s, nil
}
