package postgres

import (
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Config selects the cluster and locates the server.
type Config struct {
	Cluster string

	// DSN is a connection string, as a URL or as keywords and values; libpq's variables are its
	// defaults. It may name several hosts, of which only one takes writes. It is never logged.
	DSN string
	// DSNFile wins over DSN, and is read again for every login.
	DSNFile string
	// PasswordFile wins over the password in the connection string, and is read again for every
	// login.
	PasswordFile string

	// Accept returns why a connection string must not be used; it may be nil. A part of the string
	// that it misreads may appear in errors as a host name.
	Accept func(dsn string) error

	// RereadEvery is how often Follow reads the role key although no hint has come, give or take a
	// quarter. Zero: 10 s.
	RereadEvery time.Duration

	Log zerolog.Logger
}

const (
	defaultRereadEvery = 10 * time.Second
	// dialTimeout bounds one attempt to connect, to all hosts of the connection string at once.
	dialTimeout = 3 * time.Second
	// callLimit bounds calls whose context allows more, on the client and on the server.
	callLimit = 5 * time.Second
)

// check fills in the defaults and refuses what can't work.
func (c *Config) check() error {
	if err := election.CheckName(c.Cluster); err != nil {
		return fmt.Errorf("cluster: %v", err)
	}
	if c.RereadEvery <= 0 {
		c.RereadEvery = defaultRereadEvery
	}
	if c.DSN != "" && c.DSNFile != "" {
		return errors.New("postgres.dsn: give either dsn or dsn_file")
	}
	return nil
}
