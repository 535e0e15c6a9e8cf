package consul

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/tanist/tanist/election"
)

// Service describes how the active appears in Consul's catalog and therefore in DNS:
// <Name>.service.consul and active.<Name>.service.consul resolve to the active only.
type Service struct {
	Name string
	Tags []string // besides "active"

	// Connect also registers a mesh proxy for the active. The operator runs the proxy next to every
	// controller at all times; only the active's gets connections.
	Connect bool
	// ProxyPort is the port of this controller's mesh proxy. Zero: 21000.
	ProxyPort int
}

const defaultProxyPort = 21000

func (v *Service) check() error {
	if v.Name == "" || len(v.Name) > 63 || strings.Trim(strings.ToLower(v.Name), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("consul.service.name %q is not a DNS label: use letters, digits and dashes", v.Name)
	}
	if v.ProxyPort < 0 || v.ProxyPort > 65535 {
		return fmt.Errorf("consul.service.proxy_port %d is not a port", v.ProxyPort)
	}
	return nil
}

func (v *Service) proxyID() string { return v.Name + "-sidecar-proxy" }

// serviceGone removes the registration of the active, if there is one.
func (s *Store) serviceGone() []op {
	v := s.cfg.Service
	if v == nil {
		return nil
	}
	gone := func(id string) op {
		return op{TxnOp: api.TxnOp{Service: &api.ServiceTxnOp{Verb: api.ServiceDelete, Node: s.entry, Service: api.AgentService{ID: id, Service: id}}}}
	}
	ops := []op{gone(v.Name)}
	if v.Connect {
		ops = append(ops, gone(v.proxyID()))
	}
	return ops
}

// serviceOps sets the registration to what a describes: present if a is serving, absent otherwise.
func (s *Store) serviceOps(a election.Active) ([]op, error) {
	if s.cfg.Service == nil {
		return nil, nil
	}
	if !a.Serving() || a.URL == "" { // without a URL there is nothing to register
		return s.serviceGone(), nil
	}
	services, err := s.services(a)
	if err != nil {
		return nil, err
	}
	var ops []op
	for _, v := range services {
		ops = append(ops, op{TxnOp: api.TxnOp{Service: &api.ServiceTxnOp{Verb: api.ServiceSet, Node: s.entry, Service: v}}})
	}
	return ops, nil
}

// services returns the registrations of a serving active.
func (s *Store) services(a election.Active) ([]api.AgentService, error) {
	v := s.cfg.Service
	host, port, err := hostPort(a.URL)
	if err != nil {
		return nil, fmt.Errorf("cannot announce %s: %v", a.Controller, err)
	}
	meta := map[string]string{
		"tanist-cluster": s.cfg.Cluster, "controller": a.Controller, "term": termText(a.Term), "role": string(election.RoleActive), "url": a.URL,
	}
	named, err := namedURLs(a)
	if err != nil {
		return nil, fmt.Errorf("cannot announce %s: %v", a.Controller, err)
	}
	for name, u := range named {
		meta["url-"+name] = u.String()
	}
	weights := api.AgentWeights{Passing: 1, Warning: 1}
	services := []api.AgentService{{
		ID: v.Name, Service: v.Name, Address: host, Port: port, Tags: append([]string{"active"}, v.Tags...), Meta: meta, Weights: weights,
	}}
	if v.Connect {
		proxy := v.ProxyPort
		if proxy == 0 {
			proxy = defaultProxyPort
		}
		services = append(services, api.AgentService{
			Kind: api.ServiceKindConnectProxy, ID: v.proxyID(), Service: v.proxyID(), Address: host, Port: proxy,
			Tags: append([]string{"active"}, v.Tags...), Meta: maps.Clone(meta), Weights: weights,
			Proxy: &api.AgentServiceConnectProxyConfig{
				DestinationServiceName: v.Name, DestinationServiceID: v.Name, LocalServiceAddress: "127.0.0.1", LocalServicePort: port,
			},
		})
	}
	return services, nil
}

// namedURLs returns the other URLs of a record.
func namedURLs(a election.Active) (map[string]election.URL, error) {
	if a.URLs == "" {
		return nil, nil
	}
	main, err := election.ParseURL(a.URL)
	if err != nil {
		return nil, err
	}
	return a.URLs.Check(main)
}

// hostPort returns the host and port of a URL.
func hostPort(raw string) (host string, port int, err error) {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return "", 0, fmt.Errorf("%q has no host", raw)
	}
	switch {
	case u.Port() != "":
		port, err = strconv.Atoi(u.Port())
	case u.Scheme == "https":
		port = 443
	case u.Scheme == "http":
		port = 80
	default:
		err = errors.New("no port")
	}
	if err != nil || port < 1 || port > 65535 {
		return "", 0, fmt.Errorf("%q has no port", raw)
	}
	return u.Hostname(), port, nil
}

// Announcer keeps the registration of the active correct where no transaction of a reign can: it
// removes a registration whose lease ended without a successor, and restores that of this process's
// own reign if somebody removed or changed it. It writes only if the role key is unchanged since it
// was read, and only registrations of this cluster.
type Announcer struct {
	store *Store
}

// Announcer returns the announcer of s, or nil if [Config.Service] is not set. Every process next
// to a controller should run one.
func (s *Store) Announcer() *Announcer {
	if s.cfg.Service == nil {
		return nil
	}
	return &Announcer{s}
}

const (
	announceEvery   = 15 * time.Second // without a hint; somebody may have changed the catalog
	announceAttempt = 3 * time.Second
)

// Run works until ctx ends, and returns nil then. It logs a failure once and retries.
func (a *Announcer) Run(ctx context.Context) error {
	ctx, cancel := a.store.until(ctx)
	defer cancel()
	hints := a.store.Watch(ctx)
	failing := false
	for ctx.Err() == nil {
		attempt, done := context.WithTimeout(ctx, announceAttempt)
		err := a.repair(attempt)
		done()
		wait := announceEvery
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if !failing {
				a.store.log.Warn().Err(err).Msg("cannot maintain the registration in Consul's catalog; retrying")
			}
			failing, wait = true, time.Second
		case failing:
			a.store.log.Info().Msg("the registration in Consul's catalog is maintained again")
			failing = false
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-hints:
		}
		timer.Stop()
	}
	return nil
}

// repair reads once and writes what is needed.
func (a *Announcer) repair(ctx context.Context) error {
	s := a.store
	pair, err := s.get(ctx, election.ActiveKey)
	if err != nil {
		return err
	}
	catalog, _, err := s.client.Catalog().NodeServiceList(s.entry, consistent(ctx))
	if err != nil {
		return known(err)
	}
	present := map[string]*api.AgentService{}
	if catalog != nil {
		for _, v := range catalog.Services {
			present[v.ID] = v
		}
	}
	var active election.Active
	version := election.Version(0)
	mine := false
	if pair != nil {
		version = election.Version(pair.ModifyIndex)
		active, err = election.DecodeActive(pair.Value)
		if err != nil {
			return fmt.Errorf("cannot determine the active controller: %v", err)
		}
		lease := s.published.Load()
		mine = lease != nil && pair.Session == string(*lease)
	}
	ops := []op{s.unchanged(election.ActiveKey, version, errMoved)}
	if !active.Serving() {
		for _, o := range s.serviceGone() {
			if v := present[o.Service.Service.ID]; v != nil && v.Meta["tanist-cluster"] == s.cfg.Cluster {
				ops = append(ops, o)
			}
		}
	} else if mine {
		set, err := s.serviceOps(active)
		if err != nil {
			return err
		}
		for _, o := range set {
			if v := present[o.Service.Service.ID]; v == nil || !sameService(*v, o.Service.Service) {
				ops = append(ops, o)
			}
		}
	}
	if len(ops) == 1 {
		return nil
	}
	_, err = s.commit(ctx, ops)
	if errors.Is(err, errNoEntry) {
		if err = s.register(ctx); err == nil {
			_, err = s.commit(ctx, ops)
		}
	}
	switch {
	case errors.Is(err, errMoved):
		return nil // the hint for that change is on its way
	case err != nil:
		return err
	}
	s.log.Info().Str("service", s.cfg.Service.Name).Str("controller", active.Controller).Msg("repaired the registration in Consul's catalog")
	return nil
}

func sameService(have, want api.AgentService) bool {
	return have.Service == want.Service && have.Address == want.Address && have.Port == want.Port && have.Kind == want.Kind &&
		slices.Equal(have.Tags, want.Tags) && maps.Equal(have.Meta, want.Meta)
}
