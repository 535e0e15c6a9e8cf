package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tanist/tanist/plugin/internal/handshake"
	"github.com/tanist/tanist/plugin/internal/pluginv1"
)

const (
	// startWithin bounds the time until a plugin that was started has described itself.
	startWithin = 10 * time.Second
	// endWithin is how long a plugin may take to end before it is killed.
	endWithin = 500 * time.Millisecond
	// longestMessage bounds what a plugin may answer, in bytes.
	longestMessage = 16 << 20
)

// instance is one process of a plugin that has described itself.
type instance struct {
	program *program
	client  *goplugin.Client
	conn    *grpc.ClientConn
	about   About

	asking atomic.Bool  // a ping is under way
	lies   atomic.Int32 // answers in a row that contradicted the protocol

	once      sync.Once
	condemned chan struct{}
	why       error // valid once condemned is closed
}

// About is what a plugin reports about itself.
type About struct {
	Name    string // its own, not that of its file
	Version string
	Kinds   []string // store, check
}

// Offers reports whether a plugin offers a kind.
func (a About) Offers(kind string) bool { return slices.Contains(a.Kinds, kind) }

// connector is the host's half of go-plugin's registration: it only hands out the connection.
type connector struct {
	goplugin.NetRPCUnsupportedPlugin
}

// GRPCServer implements [goplugin.GRPCPlugin].
func (connector) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("a host serves nothing")
}

// GRPCClient implements [goplugin.GRPCPlugin].
func (connector) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// start starts a process of the plugin, and returns it when it has described itself.
func (s *Spec) start(ctx context.Context) (*instance, error) {
	f, err := find(s.Name, s.Dirs, s.SHA256)
	if err != nil {
		return nil, err
	}
	p, err := newProgram(f, s.Env)
	if err != nil {
		return nil, err
	}
	out := &lines{log: s.Log}
	cfg := &goplugin.ClientConfig{
		HandshakeConfig: handshake.Config(),
		VersionedPlugins: map[int]goplugin.PluginSet{
			handshake.Version: {handshake.Name: connector{}},
		},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         !s.Plain, SkipHostEnv: true, StartTimeout: startWithin,
		Stderr: out, SyncStdout: out, SyncStderr: out, Logger: hclog.NewNullLogger(),
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(longestMessage), grpc.MaxCallSendMsgSize(longestMessage)),
			grpc.WithIdleTimeout(0), // there is one connection for as long as the process runs
		},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			p.cmd.Env = append(p.cmd.Env, cmd.Env...) // the handshake
			p.dir = dir
			return p, nil
		},
	}
	i := &instance{program: p, client: goplugin.NewClient(cfg), condemned: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = p.Kill(ctx) })
	defer stop()
	if err := i.connect(ctx); err != nil {
		i.end(true)
		return nil, errors.Join(err, i.program.failure())
	}
	return i, nil
}

// failure is why the process ended by itself; nil if it had not ended.
func (p *program) failure() error {
	select {
	case <-p.ended:
		if p.err != nil {
			return fmt.Errorf("it has ended: %w", p.err)
		}
	default:
	}
	return nil
}

// connect completes the handshake and asks the plugin to describe itself.
func (i *instance) connect(ctx context.Context) error {
	protocol, err := i.client.Client()
	if err != nil {
		return err
	}
	raw, err := protocol.Dispense(handshake.Name)
	if err != nil {
		return err
	}
	i.conn = raw.(*grpc.ClientConn)
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	d, err := pluginv1.NewPluginServiceClient(i.conn).Describe(ctx, &pluginv1.DescribeRequest{})
	if err != nil {
		return fmt.Errorf("it does not describe itself: %w", err)
	}
	i.about = About{Name: printable(d.GetName()), Version: printable(d.GetVersion())}
	for _, kind := range d.GetKinds() {
		name := strings.ToLower(strings.TrimPrefix(kind.String(), "KIND_"))
		if kind != pluginv1.Kind_KIND_UNSPECIFIED && !slices.Contains(i.about.Kinds, name) {
			i.about.Kinds = append(i.about.Kinds, name)
		}
	}
	if len(i.about.Kinds) == 0 {
		return errors.New("it offers nothing")
	}
	// Nobody else connects, and nothing is left behind if this process is killed.
	_ = os.RemoveAll(i.program.dir)
	return nil
}

// printable returns the beginning of a text of a plugin, fit for a log and a terminal.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "…"
	}
	return text
}

// ping asks the plugin for a sign of life, which does not involve what it stands for.
func (i *instance) ping(ctx context.Context) error {
	_, err := grpc_health_v1.NewHealthClient(i.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: goplugin.GRPCServiceName})
	return err
}

// condemn makes the plugin's supervisor end this process. Only the first reason counts.
func (i *instance) condemn(why error) {
	i.once.Do(func() {
		i.why = why
		close(i.condemned)
	})
}

// end ends the process: by asking, unless kill is set, and then by force. It returns when the process
// and everything that belonged to the connection is gone.
func (i *instance) end(kill bool) {
	if i.conn != nil {
		_ = i.conn.Close() // calls that still wait learn that the outcome is unknown
	}
	i.program.dismiss()
	if i.program.begun {
		timer := time.NewTimer(endWithin)
		defer timer.Stop()
		if !kill {
			select {
			case <-i.program.ended:
			case <-timer.C:
			}
		}
		_ = i.program.Kill(context.Background())
		<-i.program.ended
	}
	i.client.Kill() // the process is gone: it only cleans up
	_ = os.RemoveAll(i.program.dir)
}
