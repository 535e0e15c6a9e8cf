package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/election"
)

// store is the lab's own view of its store. It contains no code of the product.
type store interface {
	// start starts or restarts the server, and returns when it responds.
	start(ctx context.Context) error
	// kill ends it at once. Its data stays.
	kill()
	// read returns the values below the cluster's keys, by key without their prefix.
	read(ctx context.Context) (map[string]string, error)
	// follow reports every change of a role key ("PUT" or "DELETE") until ctx ends.
	follow(ctx context.Context, tell func(kind, key, value string))
	// config returns the part of a configuration that selects the store.
	config() string
	// url returns the address of the store.
	url() string
	// commands show the store to people.
	commands() (environment, watch, get string)
	// process returns its process and how that reported its end.
	process() *proc
	close()
}

// etcdStore runs etcd, embedded in a process of this binary.
type etcdStore struct {
	self, dir, logs, client, peer string

	server *proc
	conn   *clientv3.Client
}

func (s *etcdStore) start(ctx context.Context) (err error) {
	if s.server, err = spawn(s.logs, "etcd", s.self, []string{"etcd", "--dir", s.dir, "--client", s.client, "--peer", s.peer}, nil); err != nil {
		return err
	}
	if s.conn == nil {
		s.conn, err = clientv3.New(clientv3.Config{Endpoints: []string{s.client}, DialTimeout: 10 * time.Second, Logger: zap.NewNop(), Context: ctx})
		if err != nil {
			return fmt.Errorf("cannot use etcd: %v", err)
		}
	}
	return wait(ctx, 30*time.Second, "etcd to answer", func(ctx context.Context) error {
		if !s.server.alive() {
			return finalError{errors.New("etcd ended")}
		}
		s.conn.ActiveConnection().ResetConnectBackoff() // the pause between attempts grows otherwise
		_, err := s.conn.Get(ctx, prefix)
		return err
	})
}

func (s *etcdStore) kill() { s.server.stop(syscall.SIGKILL, time.Second) }

func (s *etcdStore) read(ctx context.Context) (map[string]string, error) {
	resp, err := s.conn.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, kv := range resp.Kvs {
		all[strings.TrimPrefix(string(kv.Key), prefix)] = string(kv.Value)
	}
	return all, nil
}

// follow continues after the last received event when a watch breaks.
func (s *etcdStore) follow(ctx context.Context, tell func(kind, key, value string)) {
	next := int64(0)
	if first, err := s.conn.Get(ctx, prefix+election.RoleWordPrefix, clientv3.WithPrefix()); err == nil {
		for _, kv := range first.Kvs {
			tell("PUT", string(kv.Key), string(kv.Value))
		}
		next = first.Header.Revision + 1
	}
	for ctx.Err() == nil {
		for resp := range s.conn.Watch(clientv3.WithRequireLeader(ctx), prefix+election.RoleWordPrefix, clientv3.WithPrefix(), clientv3.WithRev(next)) {
			for _, e := range resp.Events {
				tell(e.Type.String(), string(e.Kv.Key), string(e.Kv.Value))
				next = e.Kv.ModRevision + 1
			}
			if resp.CompactRevision > 0 {
				next = resp.CompactRevision
			}
		}
		_ = pause(ctx, 100*time.Millisecond) // the loop checks ctx
	}
}

func (s *etcdStore) config() string {
	return fmt.Sprintf("store: etcd\netcd: {endpoints: [%q]}", s.client)
}
func (s *etcdStore) url() string    { return s.client }
func (s *etcdStore) process() *proc { return s.server }

func (s *etcdStore) commands() (environment, watch, get string) {
	return "ETCDCTL_ENDPOINTS=" + s.client, "etcdctl watch --prefix " + prefix + election.RoleWordPrefix, "etcdctl get --prefix " + prefix
}

func (s *etcdStore) close() {
	if s.conn != nil {
		_ = s.conn.Close() // before the server, which would wait for it
	}
	s.server.stop(syscall.SIGTERM, 5*time.Second)
}

// consulStore runs one Consul server: the pinned version that the tests use.
type consulStore struct {
	dir string

	cluster *consultest.Cluster
	client  *api.Client
}

func (s *consulStore) start(ctx context.Context) (err error) {
	if s.cluster != nil {
		if err := s.cluster.Servers[0].Start(); err != nil {
			return err
		}
		return s.cluster.Wait(ctx)
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("cannot start Consul: %v", err)
	}
	if s.cluster, err = consultest.Launch(ctx, s.dir, consultest.Options{}); err != nil {
		return err
	}
	s.client, err = s.cluster.Client(s.cluster.Servers[0])
	return err
}

func (s *consulStore) kill() {
	_ = s.cluster.Servers[0].Kill() // it may be dead already
}

const consulPrefix = election.RootPath + "/" + cluster + "/"

func (s *consulStore) list(ctx context.Context, below string, after uint64) (map[string]string, uint64, error) {
	options := &api.QueryOptions{WaitIndex: after, WaitTime: 10 * time.Second}
	pairs, meta, err := s.client.KV().List(consulPrefix+below, options.WithContext(ctx))
	if err != nil {
		return nil, 0, err
	}
	all := map[string]string{}
	for _, p := range pairs {
		all[strings.TrimPrefix(p.Key, consulPrefix)] = string(p.Value)
	}
	return all, meta.LastIndex, nil
}

func (s *consulStore) read(ctx context.Context) (map[string]string, error) {
	all, _, err := s.list(ctx, "", 0)
	return all, err
}

// follow sees states instead of events: of two changes at once it reports only the last.
func (s *consulStore) follow(ctx context.Context, tell func(kind, key, value string)) {
	last, index := map[string]string{}, uint64(0)
	for ctx.Err() == nil {
		now, next, err := s.list(ctx, election.RoleWordPrefix, index)
		if err != nil {
			index = 0
			_ = pause(ctx, 100*time.Millisecond) // the loop checks ctx
			continue
		}
		if index = next; next < index {
			index = 0
		}
		for _, key := range slices.Sorted(maps.Keys(last)) {
			if _, ok := now[key]; !ok {
				tell("DELETE", consulPrefix+key, "")
			}
		}
		for _, key := range slices.Sorted(maps.Keys(now)) {
			if old, ok := last[key]; !ok || old != now[key] {
				tell("PUT", consulPrefix+key, now[key])
			}
		}
		last = now
	}
}

func (s *consulStore) config() string {
	return fmt.Sprintf("store: consul\nconsul: {address: %q, service: {name: %s}}", s.url(), cluster)
}
func (s *consulStore) url() string    { return s.cluster.Servers[0].URL() }
func (s *consulStore) process() *proc { return nil }

func (s *consulStore) commands() (environment, watch, get string) {
	host, port, _ := strings.Cut(s.cluster.Servers[0].DNS(), ":")
	return "CONSUL_HTTP_ADDR=" + s.url(), "consul watch -type=keyprefix -prefix=" + consulPrefix + election.RoleWordPrefix + " cat",
		fmt.Sprintf("dig @%s -p %s %s.service.consul SRV +short", host, port, cluster)
}

func (s *consulStore) close() {
	if s.cluster != nil {
		s.cluster.Close()
	}
}
