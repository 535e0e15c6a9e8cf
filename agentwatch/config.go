package agentwatch

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Source follows the role key of the store.
//
// Obligations: the first Sighting comes as soon as anything is known or the first attempt has failed; the channel holds the
// newest one; a Sighting with Err says that the store can't be asked, one without that it can again; the channel is closed when
// ctx has ended.
type Source interface {
	Follow(ctx context.Context) <-chan election.Sighting
}

// Process is one agent's process tree.
//
// Obligations: a Start that returns an error leaves nothing running. Stop sends the stop signal, kills the whole tree after grace, and
// returns nil only when no process of the tree is left; it may be called again, and on a process that ended by itself, where it
// clears away what that left behind. Exited is valid after Start and closed when the main process has ended.
type Process interface {
	Start(ctx context.Context, env []string, deadline election.Instant) error
	Stop(ctx context.Context, grace time.Duration) error
	Exited() <-chan struct{}
	Exit() string
	PID() int
}

// Presence keeps the agents' status in the store: the part of [election.Backend] that it takes.
type Presence interface {
	Grant(ctx context.Context, ttl time.Duration) (election.LeaseID, error)
	Renew(ctx context.Context, r election.Renewal) error
	Revoke(ctx context.Context, lease election.LeaseID) error
	Get(ctx context.Context, key string) (election.Entry, error)
	Put(ctx context.Context, p election.Put) error
}

// What to do with a running agent when the active changes.
const (
	Restart = "restart" // stop it and start it anew
	Signal  = "signal"  // render the files and signal the main process
	Exec    = "exec"    // render the files and run a command
)

// Agent is one agent of a [Watch].
type Agent struct {
	Name string
	// Command and the values of Env are text/templates over [Data].
	Command     []string
	Env         map[string]string
	Files       []File
	StopTimeout time.Duration
	OnChange    OnChange
	// Overlap: the new process is started before the old one is stopped. For agents that don't mind two of themselves.
	Overlap bool
	// New makes the process, not yet started, of a rendered command. env ("NAME=value") comes on top of what the
	// maker gives every agent.
	New func(command, env []string) Process
}

// File is rendered before each start.
type File struct {
	Template string      // path of the template, read anew for each rendering
	Path     string      // the file it makes
	Mode     os.FileMode // permission bits
	Owner    string      // "user", "user:group" or ":group"; empty: this process's own
	// Validate, if set, is a command (each argument a template over [Data], where .File is the path of the candidate) that
	// must exit with status 0, within 10 s, for the candidate to be put in place.
	Validate []string
}

// OnChange says how a running agent learns of a new active.
type OnChange struct {
	Action string         // [Restart], [Signal] or [Exec]
	Signal syscall.Signal // for Signal
	// Exec is the command for [Exec], each argument a template over [Data]. If it fails or takes longer than
	// ExecTimeout, the agent is restarted.
	Exec        []string
	ExecTimeout time.Duration
	// Splay: wait a random part of it before touching the agent, so that a fleet does not come all at once.
	Splay time.Duration
}

// Probe is the watch's own look at the startup port.
type Probe struct {
	Interval time.Duration
	Timeout  time.Duration
	Fall     int // failures in a row until the port counts as not answering, in whom to follow
}

// Retries is how long to try when no controller can be reached.
type Retries struct {
	Count int           // rounds; zero: for ever
	Every time.Duration // from round to round
}

// Backoff is the pause before an agent that ended by itself, or could not be started, is started again: Min at first, doubled each
// time up to Max, and Min again after it has run for Reset. Each pause is shortened by a random part of up to a quarter.
type Backoff struct {
	Min, Max, Reset time.Duration
}

// Config is a [Watch] to be.
type Config struct {
	Cluster string
	Agents  []Agent
	Source  Source
	// Controllers are the URLs that may ever be active; empty: any. They are also probed.
	Controllers []string
	// Sidecars are base URLs of sidecars' REST interfaces to ask while the store is away, beyond those learned.
	Sidecars []string
	Probe    Probe
	Retries  Retries
	// StopOnVacancy: stop the agents while the store says that nobody is active.
	StopOnVacancy bool
	Backoff       Backoff
	StateFile     string   // keeps the last known across restarts; empty: none
	Presence      Presence // nil: no status in the store
	PresenceTTL   time.Duration
	// PresenceSpread: a change of status is written one second and a random part of this after it, so that a fleet that switches
	// neither writes all at once nor while the news of the active is still on its way to others.
	PresenceSpread time.Duration
	Host           string // for the status
	// Self is this process, for the status: an agent's name belongs to the agentwatch that wrote it. Empty: any incarnation.
	Self election.AgentWatch
	// Dead reports whether a process that wrote a status is known to be gone (same host, no such process). nil: it never is.
	Dead func(election.AgentWatch) bool
	Log  zerolog.Logger

	// What the watch reaches the world by. Zero values are the real things.
	Dial   func(ctx context.Context, addr string) error // one TCP connection to "host:port"
	HTTP   *http.Client                                 // for the sidecars' REST interface
	Signal func(pid int, sig syscall.Signal) error      // to a main process
	Random func() float64                               // in [0,1)
}

// Defaults returns a Config with the defaults of everything that has one.
func Defaults() Config {
	return Config{
		Probe:       Probe{Interval: time.Second, Timeout: 800 * time.Millisecond, Fall: 3},
		Retries:     Retries{Count: 10, Every: 2 * time.Second},
		Backoff:     Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second, Reset: 30 * time.Second},
		PresenceTTL: 20 * time.Second, PresenceSpread: 4 * time.Second,
	}
}

// AgentDefaults returns an Agent with the defaults of everything that has one.
func AgentDefaults() Agent {
	return Agent{StopTimeout: 5 * time.Second, OnChange: OnChange{Action: Restart, ExecTimeout: 10 * time.Second}}
}

func (c *Config) fill() {
	if c.Dial == nil {
		c.Dial = dial
	}
	if c.HTTP == nil {
		c.HTTP = &http.Client{
			Transport:     &http.Transport{DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	if c.Signal == nil {
		c.Signal = signalPID
	}
	if c.Random == nil {
		c.Random = rand.Float64
	}
	if c.Self.Incarnation == "" {
		c.Self.Incarnation = crand.Text()
	}
	if c.Dead == nil {
		c.Dead = func(election.AgentWatch) bool { return false }
	}
	if c.Host == "" {
		c.Host, _ = os.Hostname()
	}
}

func dial(ctx context.Context, addr string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if conn.LocalAddr().String() == conn.RemoteAddr().String() {
		return errors.New("nobody listens there") // the connection is one to itself
	}
	return nil
}

// Validate returns everything that is wrong with c, joined; each error begins with the path of the key it is about. Templates are
// parsed and tried, template files read.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	positive := func(key string, d time.Duration) {
		if d <= 0 {
			bad("%s: %v is not a positive duration", key, d)
		}
	}
	if !validName(c.Cluster) {
		bad("cluster: %q is not a name (letters, digits, dot, dash, underscore)", c.Cluster)
	}
	if c.Source == nil {
		bad("store: there is none to follow")
	}
	positive("probe.interval", c.Probe.Interval)
	positive("probe.timeout", c.Probe.Timeout)
	if c.Probe.Fall < 1 {
		bad("probe.fall: %d is not at least 1", c.Probe.Fall)
	}
	if c.Retries.Count < 0 {
		bad("retries.count: %d is negative; 0 means for ever", c.Retries.Count)
	}
	positive("retries.every", c.Retries.Every)
	positive("backoff.min", c.Backoff.Min)
	if c.Backoff.Max < c.Backoff.Min {
		bad("backoff.max: %v is less than backoff.min (%v)", c.Backoff.Max, c.Backoff.Min)
	}
	if c.Backoff.Reset < 0 {
		bad("backoff.reset: %v is negative", c.Backoff.Reset)
	}
	if c.Presence != nil && c.PresenceTTL < time.Second {
		bad("presence_ttl: %v is less than 1s", c.PresenceTTL)
	}
	for i, u := range c.Controllers {
		if _, err := parseURL(u); err != nil {
			bad("controllers[%d]: %q can't be followed: %v", i, u, err)
		}
	}
	for i, u := range c.Sidecars {
		if _, err := parseURL(u); err != nil {
			bad("sidecars[%d]: %q can't be asked: %v", i, u, err)
		}
	}
	if len(c.Agents) == 0 {
		bad("agents: there are none")
	}
	names := map[string]bool{}
	paths := map[string]string{}
	for i, a := range c.Agents {
		key := ""
		if len(c.Agents) > 1 {
			key = fmt.Sprintf("agents[%d].", i)
		}
		if !validName(a.Name) {
			bad("%sname: %q is not a name (letters, digits, dot, dash, underscore)", key, a.Name)
		} else if names[a.Name] {
			bad("%sname: %q is taken by another agent", key, a.Name)
		}
		names[a.Name] = true
		if a.New == nil {
			bad("%srun: there is nothing to make a process with", key)
		}
		positive(key+"run.stop_timeout", a.StopTimeout)
		switch a.OnChange.Action {
		case Restart:
		case Signal:
			if a.OnChange.Signal <= 0 || a.OnChange.Signal > 64 {
				bad("%son_change.action: signal %d does not exist", key, a.OnChange.Signal)
			}
		case Exec:
			positive(key+"on_change.exec_timeout", a.OnChange.ExecTimeout)
		default:
			bad("%son_change.action: %q is none of restart, signal:NAME, exec", key, a.OnChange.Action)
		}
		if a.OnChange.Splay < 0 {
			bad("%son_change.splay: %v is negative", key, a.OnChange.Splay)
		}
		for j, f := range a.Files {
			if f.Path == "" {
				bad("%srun.files[%d].path: is empty", key, j)
			} else if other, taken := paths[f.Path]; taken {
				bad("%srun.files[%d].path: %s is also written by %s", key, j, f.Path, other)
			}
			paths[f.Path] = fmt.Sprintf("%srun.files[%d]", key, j)
			if f.Mode&^fs.ModePerm != 0 || f.Mode == 0 {
				bad("%srun.files[%d].mode: %#o is not a permission from 0001 to 0777", key, j, uint32(f.Mode))
			}
			if _, _, err := ownerIDs(f.Owner); err != nil {
				bad("%srun.files[%d].owner: %v", key, j, err)
			}
		}
		if t, err := parseTemplates(a); err != nil {
			bad("%s%v", key, err)
		} else if _, err := t.render(sampleData(c.Cluster, a.Name)); err != nil {
			bad("%s%v", key, err)
		}
	}
	return errors.Join(errs...)
}
