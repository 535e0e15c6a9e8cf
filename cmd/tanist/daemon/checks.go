package daemon

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/health"
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/sidecar"
)

func makeHealth(c *config.Controller, book *addressBook, plugins *checkers, log zerolog.Logger) (*health.Monitor, error) {
	h := health.Config{Interval: c.Health.Interval, Timeout: c.Health.Timeout, Rise: c.Health.Rise, Fall: c.Health.Fall}
	for i, k := range c.Health.Checks {
		var check health.Check
		var err error
		if k.Plugin != "" {
			check, err = plugins.check(c, k, log)
		} else {
			check, err = makeCheck(k, starter{c.Run.EnvFrom, c.Run.NoNewPrivs})
		}
		if err != nil {
			return nil, fmt.Errorf("health.checks[%d]: %s", i, postgres.Unquoted(err))
		}
		h.Checks = append(h.Checks, check)
	}
	if book != nil {
		h.Checks = append(h.Checks, health.Check{Name: virtualIPCheck, Run: func(context.Context) error { return book.holder.Wrong() }})
	}
	if err := h.Validate(); err != nil {
		return nil, err
	}
	if len(h.Checks) == 0 {
		return nil, nil
	}
	return health.NewMonitor(h, log), nil
}

func makeCheck(k config.Check, with starter) (check health.Check, err error) {
	check.Name = k.Name
	switch {
	case k.HTTP != "":
		check.Run, err = makeHTTP(k)
	case k.TCP != "":
		check.Run, err = health.TCP(k.TCP, checkTLS(k.TLS))
	case len(k.Exec) > 0:
		check.Run, err = health.Exec(k.Exec, health.ExecOptions{Start: with.start})
	case k.GRPC != "":
		check.Run, err = health.GRPC(k.GRPC, k.Service, checkTLS(k.TLS))
	case k.Postgres != "":
		check, err = health.Postgres(k.Name, k.Postgres, postgres.CheckDSN)
	}
	return check, err
}

func makeHTTP(k config.Check) (func(context.Context) error, error) {
	o := health.HTTPOptions{Method: k.Method, Body: k.ExpectBody, Header: http.Header{}}
	for _, e := range k.Expect {
		n, err := strconv.Atoi(e)
		if err != nil {
			return nil, fmt.Errorf("expect: %q is not a status code", e)
		}
		o.Expect = append(o.Expect, n)
	}
	for name, value := range k.Headers {
		o.Header.Set(name, value)
	}
	if k.TLS != nil {
		o.TLS = *checkTLS(k.TLS)
	}
	return health.HTTP(k.HTTP, o)
}

// checkTLS converts the key tls of a check.
func checkTLS(t *config.CheckTLS) *health.TLSOptions {
	if t == nil {
		return nil
	}
	return &health.TLSOptions{CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile, ServerName: t.ServerName, Insecure: t.Insecure}
}

func makePeers(c *config.Controller) (*sidecar.Peers, error) {
	if c.Failsafe.SecretFile == "" {
		return nil, nil
	}
	secret, err := SecretFile(c.Failsafe.SecretFile)
	if err != nil {
		return nil, err
	}
	return &sidecar.Peers{
		Cluster: c.Cluster, Name: c.Name, Secret: []byte(strings.TrimSpace(secret)), Timeout: c.Failsafe.Timeout,
		Client: &http.Client{Transport: &http.Transport{Proxy: nil, MaxIdleConnsPerHost: 1, IdleConnTimeout: 10 * time.Second}},
	}, nil
}
