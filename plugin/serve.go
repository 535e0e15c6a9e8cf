package plugin

import (
	"context"
	"io"
	"os"
	"strconv"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/plugin/internal/handshake"
	"github.com/tanist/tanist/plugin/internal/pluginv1"
)

// Plugin is what one program offers. The functions that are nil are not offered.
type Plugin struct {
	Name    string // for people
	Version string

	// OpenStore opens one cluster of the store. It does not connect, so the store may be away. An
	// error that wraps [ErrSettings] is the file's fault.
	OpenStore func(Settings) (Store, error)
	// Traits are what the store guarantees about leases. Their name is not used.
	Traits election.Traits

	// Check probes a controller once. It returns soon after ctx ends, and an error if the check
	// fails.
	Check func(ctx context.Context, c CheckCall) error
}

// CheckCall is one health check.
type CheckCall struct {
	Name       string // of the check in the file
	Cluster    string
	Controller string
	URL        string // of the controller next to the sidecar
	Settings   Settings
}

// Serve runs the plugin, and does not return before it ends. It ends when the host closes it, and
// when the host is gone. What the plugin writes to its standard output and standard error goes to
// the host's log.
func Serve(p Plugin) {
	if fd, err := strconv.Atoi(os.Getenv(handshake.LifelineVariable)); err == nil {
		go endWith(os.NewFile(uintptr(fd), "lifeline"))
	}
	s := &served{plugin: p}
	defer s.close()
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: handshake.Config(),
		VersionedPlugins: map[int]goplugin.PluginSet{
			handshake.Version: {handshake.Name: s},
		},
		GRPCServer: goplugin.DefaultGRPCServer,
		Logger:     hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr, DisableTime: true}),
	})
}

// endWith ends this process when the host holds the other end of a pipe no longer. It does so at
// once: a request that is under way must not be repeated for a host that is dead.
func endWith(lifeline *os.File) {
	_, _ = io.Copy(io.Discard, lifeline)
	os.Exit(0)
}

// served registers the services of a plugin.
type served struct {
	goplugin.NetRPCUnsupportedPlugin

	plugin Plugin
	store  *storeServer // nil: none is offered
}

// close closes the store, once no call runs any more.
func (s *served) close() {
	if s.store == nil {
		return
	}
	if store, err := s.store.opened(); err == nil {
		_ = store.Close() // nobody is left to tell
	}
}

// GRPCServer implements [goplugin.GRPCPlugin].
func (s *served) GRPCServer(_ *goplugin.GRPCBroker, g *grpc.Server) error {
	d := &describer{plugin: s.plugin}
	if s.plugin.OpenStore != nil {
		d.kinds = append(d.kinds, pluginv1.Kind_KIND_STORE)
		s.store = &storeServer{plugin: s.plugin}
		pluginv1.RegisterStoreServiceServer(g, s.store)
	}
	if s.plugin.Check != nil {
		d.kinds = append(d.kinds, pluginv1.Kind_KIND_CHECK)
		pluginv1.RegisterCheckServiceServer(g, &checkServer{check: s.plugin.Check})
	}
	pluginv1.RegisterPluginServiceServer(g, d)
	return nil
}

// GRPCClient implements [goplugin.GRPCPlugin]. Only the host has a client.
func (s *served) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil //nolint:nilnil // never called in a plugin
}

// describer serves PluginService.
type describer struct {
	pluginv1.UnimplementedPluginServiceServer

	plugin Plugin
	kinds  []pluginv1.Kind
}

// Describe implements PluginService.
func (d *describer) Describe(context.Context, *pluginv1.DescribeRequest) (*pluginv1.DescribeResponse, error) {
	return &pluginv1.DescribeResponse{Name: d.plugin.Name, Version: d.plugin.Version, Kinds: d.kinds}, nil
}

// checkServer serves CheckService.
type checkServer struct {
	pluginv1.UnimplementedCheckServiceServer

	check func(context.Context, CheckCall) error
}

// Check implements CheckService.
func (s *checkServer) Check(ctx context.Context, r *pluginv1.CheckRequest) (*pluginv1.CheckResponse, error) {
	err := s.check(ctx, CheckCall{
		Name: r.GetName(), Cluster: r.GetCluster(), Controller: r.GetController(), URL: r.GetUrl(),
		Settings: Settings{Cluster: r.GetCluster(), Values: r.GetSettings()},
	})
	if err != nil {
		return &pluginv1.CheckResponse{Verdict: pluginv1.Verdict_VERDICT_BAD, Detail: err.Error()}, nil //nolint:nilerr // it is the answer
	}
	return &pluginv1.CheckResponse{Verdict: pluginv1.Verdict_VERDICT_GOOD}, nil
}
