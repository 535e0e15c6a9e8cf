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
	"os/exec"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Source follows the role key of the store.
//
// Obligations: the first Sighting comes as soon as anything is known or the first attempt has
// failed; the channel holds the newest one; a Sighting with Err reports that the store is
// unreachable, one without that it is reachable again; the channel is closed when ctx has ended.
type Source interface {
	Follow(ctx context.Context) <-chan election.Sighting
}

// Process is one agent's process tree.
//
// Obligations: a Start that returned an error may leave processes behind; Stop ends them. Stop
// sends the stop signal, kills the whole tree after grace, and returns nil only when no process of
// the tree is left. It may be called again, and on a process that exited, where it ends
// what that left behind. Exited is valid after Start and closed when the main process has ended.
type Process interface {
	Start(ctx context.Context, env []string, deadline election.Instant) error
	Stop(ctx context.Context, grace time.Duration) error
	Exited() <-chan struct{}
	Exit() string
	PID() int
}

// The reactions of a running agent to a change of the active.
const (
	Restart = "restart" // stop it and start it again
	Signal  = "signal"  // render the files and signal the main process
	Exec    = "exec"    // render the files and run a command
)

// Agent is one agent of a [Watch].
type Agent struct {
	Name string
	Key  string // prefix of the agent's keys in the errors of Validate, as in "agents[0]."
	// Command and the values of Env are text/templates over [Data].
	Command     []string
	Env         map[string]string
	Files       []File
	StopTimeout time.Duration
	OnChange    OnChange
	// Overlap starts the new process before the old one is stopped. It is for agents of which two
	// may run.
	Overlap bool
	// New makes the process of a rendered command without starting it. env ("NAME=value") is added
	// to what New gives every agent.
	New func(command, env []string) Process
	// Start starts a command other than the agent: one that validates a file or notifies a running
	// agent. cmd.Env holds what to add to the environment; the caller decides what else of its
	// environment the command gets. If nil, the command gets all of it.
	Start func(cmd *exec.Cmd) error
}

func (a *Agent) start(cmd *exec.Cmd) error {
	if a.Start != nil {
		return a.Start(cmd)
	}
	cmd.Env = append(os.Environ(), cmd.Env...)
	return cmd.Start()
}

// File is a file that is rendered before each start.
type File struct {
	Template string      // path of the template, reread for each rendering
	Path     string      // path of the result
	Mode     os.FileMode // permission bits
	Owner    string      // "user", "user:group" or ":group"; empty: this process's own
	// Validate, if set, is a command that must exit with status 0 within 10 s before the candidate
	// is put in place. Each argument is a template over [Data], where .File is the path of the
	// candidate.
	Validate []string
}

// OnChange configures how a running agent learns of a new active.
type OnChange struct {
	Action string         // [Restart], [Signal] or [Exec]
	Signal syscall.Signal // for Signal
	// Exec is the command for [Exec], each argument a template over [Data]. If it fails or takes
	// longer than ExecTimeout, the agent is restarted.
	Exec        []string
	ExecTimeout time.Duration
	// Splay delays the change by a random part of it, so that a fleet does not connect all at once.
	Splay time.Duration
}

// Probe configures the watch's own probe of the startup ports.
type Probe struct {
	Interval time.Duration
	Timeout  time.Duration
	Fall     int // failures in a row until the port counts as closed
}

// Retries configures how long to retry when no controller is reachable.
type Retries struct {
	Count int           // rounds; zero: no limit
	Every time.Duration // interval of the rounds
}

// Backoff is the pause before an agent that exited, or failed to start, is started again:
// Min at first, doubled each time up to Max, and Min again after it has run for Reset. A random
// part of up to a quarter is subtracted from each pause.
type Backoff struct {
	Min, Max, Reset time.Duration
}

// Config configures a [Watch].
type Config struct {
	Cluster string
	Agents  []Agent
	Source  Source
	// Controllers are the URLs that may be active; empty: any. They are also probed.
	Controllers []string
	// Sidecars are base URLs of sidecars' REST interfaces to ask while the store is away, in
	// addition to those learned.
	Sidecars []string
	// Secret returns the secret of the cluster's sidecars. It is called before each round of
	// questions, so that a rotated file needs no restart. Responses that are not signed with it are
	// ignored; nil: no sidecar is asked.
	Secret  func() (election.Secret, error)
	Probe   Probe
	Retries Retries
	// StopOnVacancy stops the agents while the store reports that nobody is active.
	StopOnVacancy bool
	Backoff       Backoff
	StateFile     string                 // keeps the last known state across restarts; empty: none
	Presence      election.PresenceStore // nil: no status in the store
	PresenceTTL   time.Duration
	// PresenceSpread delays the write of a status by one second and a random part of this, so that
	// a switching fleet neither writes all at once nor while others still wait for the update of
	// the active.
	PresenceSpread time.Duration
	Host           string // for the status
	// Self identifies this process in the status: an agent's name belongs to the agentwatch that
	// wrote it. Empty: any incarnation.
	Self election.AgentWatch
	// Dead reports whether the process that wrote a status is known to be gone (same host, no such
	// process). If nil, none is.
	Dead func(election.AgentWatch) bool
	Log  zerolog.Logger

	// The connections to the world; the zero values are the real ones.
	Dial   func(ctx context.Context, addr string) error // one TCP connection to "host:port"
	HTTP   *http.Client                                 // for the sidecars' REST interface
	Signal func(pid int, sig syscall.Signal) error      // to a main process
	Random func() float64                               // in [0,1)
}

// Defaults returns a Config with all defaults.
func Defaults() Config {
	return Config{
		Probe:       Probe{Interval: time.Second, Timeout: 800 * time.Millisecond, Fall: 3},
		Retries:     Retries{Count: 10, Every: 2 * time.Second},
		Backoff:     Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second, Reset: 30 * time.Second},
		PresenceTTL: 20 * time.Second, PresenceSpread: 4 * time.Second,
	}
}

// AgentDefaults returns an Agent with all defaults.
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

// wrongs collects the problems of a configuration.
type wrongs []error

func (w *wrongs) bad(format string, args ...any) { *w = append(*w, fmt.Errorf(format, args...)) }

func (w *wrongs) positive(key string, d time.Duration) {
	if d <= 0 {
		w.bad("%s: %v is not a positive duration", key, d)
	}
}

// Validate returns everything that is wrong with c, joined; each error begins with the path of its
// key. It parses and tries templates, and reads template files.
func (c Config) Validate() error {
	var w wrongs
	if err := election.CheckName(c.Cluster); err != nil {
		w.bad("cluster: %v", err)
	}
	if c.Source == nil {
		w.bad("store: it is missing")
	}
	w.positive("probe.interval", c.Probe.Interval)
	w.positive("probe.timeout", c.Probe.Timeout)
	if c.Probe.Fall < 1 {
		w.bad("probe.fall: %d is not at least 1", c.Probe.Fall)
	}
	if c.Retries.Count < 0 {
		w.bad("retries.count: %d is negative; 0 means for ever", c.Retries.Count)
	}
	w.positive("retries.every", c.Retries.Every)
	w.positive("backoff.min", c.Backoff.Min)
	if c.Backoff.Max < c.Backoff.Min {
		w.bad("backoff.max: %v is less than backoff.min (%v)", c.Backoff.Max, c.Backoff.Min)
	}
	if c.Backoff.Reset < 0 {
		w.bad("backoff.reset: %v is negative", c.Backoff.Reset)
	}
	// Consul's sessions have at least 10 s; an agent that has been gone for minutes should not look
	// alive.
	if c.PresenceTTL < 10*time.Second || c.PresenceTTL > 10*time.Minute {
		w.bad("presence_ttl: %v is not between 10s and 10m", c.PresenceTTL)
	}
	c.validatePlaces(&w)
	if len(c.Agents) == 0 {
		w.bad("agents: there are none")
	}
	taken := claims{names: map[string]bool{}, paths: map[string]string{}}
	for _, a := range c.Agents {
		a.validate(&w, c.Cluster, taken)
	}
	return errors.Join(w...)
}

// validatePlaces checks the controllers and sidecars that are listed.
func (c Config) validatePlaces(w *wrongs) {
	if _, err := election.ParseControllers(c.Controllers); err != nil {
		*w = append(*w, err)
	}
	for i, u := range c.Sidecars {
		if _, err := election.ParseURL(u); err != nil {
			w.bad("sidecars[%d]: %v", i, err)
		}
	}
	if c.Secret != nil {
		secret, err := c.Secret()
		if err == nil {
			err = secret.Validate()
		}
		if err != nil {
			w.bad("failsafe.secret_file: %v", err)
		}
	} else if len(c.Sidecars) > 0 {
		w.bad("sidecars: have no effect without failsafe.secret_file, the secret that the controllers' sidecars share: only a signed answer is believed")
	}
}

// claims records what no two agents of a watch may share.
type claims struct {
	names map[string]bool
	paths map[string]string // path → agent
}

// validate checks one agent.
func (a Agent) validate(w *wrongs, cluster string, taken claims) {
	key := a.Key
	if err := election.CheckName(a.Name); err != nil {
		w.bad("%sname: %v", key, err)
	} else if taken.names[a.Name] {
		w.bad("%sname: %q is taken by another agent", key, a.Name)
	}
	taken.names[a.Name] = true
	if a.New == nil {
		w.bad("%srun: there is nothing to make a process with", key)
	}
	w.positive(key+"run.stop_timeout", a.StopTimeout)
	switch a.OnChange.Action {
	case Restart:
	case Signal:
		if a.OnChange.Signal <= 0 || a.OnChange.Signal > 64 {
			w.bad("%son_change.action: signal %d does not exist", key, a.OnChange.Signal)
		}
	case Exec:
		w.positive(key+"on_change.exec_timeout", a.OnChange.ExecTimeout)
	default:
		w.bad("%son_change.action: %q must be restart, signal:NAME or exec", key, a.OnChange.Action)
	}
	if a.OnChange.Splay < 0 {
		w.bad("%son_change.splay: %v is negative", key, a.OnChange.Splay)
	}
	for i, f := range a.Files {
		file := fmt.Sprintf("%srun.files[%d]", key, i)
		if f.Path == "" {
			w.bad("%s.path: is empty", file)
		} else if other, there := taken.paths[f.Path]; there {
			w.bad("%s.path: %s is also written by %s", file, f.Path, other)
		}
		taken.paths[f.Path] = file
		if f.Mode&^fs.ModePerm != 0 || f.Mode == 0 {
			w.bad("%s.mode: %#o is not a permission from 0001 to 0777", file, uint32(f.Mode))
		}
		if _, _, err := ownerIDs(f.Owner); err != nil {
			w.bad("%s.owner: %v", file, err)
		}
	}
	if t, err := parseTemplates(a); err != nil {
		w.bad("%s%v", key, err)
	} else if _, err := t.render(sampleData(cluster, a)); err != nil {
		w.bad("%s%v", key, err)
	}
}
