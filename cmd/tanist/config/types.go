package config

import (
	"os"
	"reflect"
	"time"
)

// Kind says what a file configures.
type Kind string

// The kinds.
const (
	KindController Kind = "controller" // tanist sidecar
	KindAgent      Kind = "agent"      // tanist agentwatch
	KindHAProxy    Kind = "haproxy"    // tanist haproxy
)

// Kinds are all of them.
func Kinds() []Kind { return []Kind{KindController, KindAgent, KindHAProxy} }

// The keys of a file are the yaml tags of the fields. A tag one lists the only values that a text may have.

// Etcd is an etcd cluster.
type Etcd struct {
	Endpoints    []string `yaml:"endpoints"`
	Prefix       string   `yaml:"prefix"`
	Username     string   `yaml:"username"`
	PasswordFile string   `yaml:"password_file"`
	TLS          TLS      `yaml:"tls"`

	// Password is that of $ETCDCTL_USER or $ETCDCTL_PASSWORD; no file has it.
	Password Hidden
}

// Consul is a Consul agent.
type Consul struct {
	Address    string        `yaml:"address"`
	Others     []string      `yaml:"others"`
	TokenFile  string        `yaml:"token_file"`
	Datacenter string        `yaml:"datacenter"`
	TLS        TLS           `yaml:"tls"`
	Service    ConsulService `yaml:"service"`

	// Token is that of $CONSUL_HTTP_TOKEN; no file has it.
	Token Hidden
}

// Hidden is a text that is never printed: every way of printing it gives "***".
type Hidden string

// String implements [fmt.Stringer].
func (Hidden) String() string { return "***" }

// GoString implements [fmt.GoStringer].
func (Hidden) GoString() string { return "***" }

// MarshalText implements [encoding.TextMarshaler].
func (Hidden) MarshalText() ([]byte, error) { return []byte("***"), nil }

// ConsulService is what the active is registered as.
type ConsulService struct {
	Name    string `yaml:"name"`
	Connect bool   `yaml:"connect"`
	// ProxyPort is where the Connect proxy beside the active listens; 0: 21000.
	ProxyPort int `yaml:"proxy_port"`
}

// TLS says who is trusted and who we are.
type TLS struct {
	CAFile     string `yaml:"ca_file"`
	CertFile   string `yaml:"cert_file"`
	KeyFile    string `yaml:"key_file"`
	ServerName string `yaml:"server_name"`
}

// Log says how to log.
type Log struct {
	Level  string `yaml:"level" one:"trace debug info warn error"`
	Format string `yaml:"format" one:"auto console json"`
}

// Controller is kind controller.
type Controller struct {
	Kind        string        `yaml:"kind"`
	Cluster     string        `yaml:"cluster"`
	Name        string        `yaml:"name"`
	Priority    int           `yaml:"priority"`
	NoFailover  bool          `yaml:"nofailover"`
	Store       string        `yaml:"store" one:"etcd consul"`
	Etcd        Etcd          `yaml:"etcd"`
	Consul      Consul        `yaml:"consul"`
	Lease       Lease         `yaml:"lease"`
	OnStoreLoss string        `yaml:"on_store_loss" one:"stop failsafe keep"`
	Failsafe    Failsafe      `yaml:"failsafe"`
	Run         Run           `yaml:"run"`
	Health      Health        `yaml:"health"`
	Repository  *Repository   `yaml:"repository"`
	YieldWait   time.Duration `yaml:"yield_wait"`
	Interval    time.Duration `yaml:"failover_interval"`
	Hooks       Hooks         `yaml:"hooks"`
	Listen      Listen        `yaml:"listen"`
	StateDir    string        `yaml:"state_dir"`
	Watchdog    string        `yaml:"watchdog" one:"off auto required"`
	Log         Log           `yaml:"log"`
}

// Lease is the timing of the lease: a profile, and what differs from it. A zero duration is the profile's.
type Lease struct {
	Profile      string        `yaml:"profile" one:"default fast"`
	TTL          time.Duration `yaml:"ttl"`
	Validity     time.Duration `yaml:"validity"`
	RenewEvery   time.Duration `yaml:"renew_every"`
	StopBudget   time.Duration `yaml:"stop_budget"`
	Silence      time.Duration `yaml:"silence"`
	LeaderChange bool          `yaml:"leader_change"`
}

// Failsafe is how sidecars ask each other while the store is away.
type Failsafe struct {
	SecretFile string        `yaml:"secret_file"`
	Timeout    time.Duration `yaml:"timeout"`
}

// Run is the controller's process.
type Run struct {
	Driver       string            `yaml:"driver" one:"exec script systemd"`
	Command      []string          `yaml:"command"`
	Stop         []string          `yaml:"stop"`
	Status       []string          `yaml:"status"`
	Kill         []string          `yaml:"kill"`
	PIDFile      string            `yaml:"pid_file"`
	Unit         string            `yaml:"unit"`
	EnvFile      string            `yaml:"env_file"`
	Env          map[string]string `yaml:"env"`
	Dir          string            `yaml:"dir"`
	User         string            `yaml:"user"`
	URL          string            `yaml:"url"`
	StartTimeout time.Duration     `yaml:"start_timeout"`
	StopSignal   string            `yaml:"stop_signal"`
	StopTimeout  time.Duration     `yaml:"stop_timeout"`
	Drain        time.Duration     `yaml:"drain"`
	Restart      Restart           `yaml:"restart"`
	Output       string            `yaml:"output"`
}

// Restart is the budget of restarts in place.
type Restart struct {
	Local  int           `yaml:"local"`
	Within time.Duration `yaml:"within"`
}

// Health is how the controller is checked.
type Health struct {
	Interval time.Duration `yaml:"interval"`
	Timeout  time.Duration `yaml:"timeout"`
	Rise     int           `yaml:"rise"`
	Fall     int           `yaml:"fall"`
	Checks   []Check       `yaml:"checks"`
}

// Check is one check; exactly one of the kinds is set.
type Check struct {
	Name     string   `yaml:"name"`
	HTTP     string   `yaml:"http"`
	Expect   []string `yaml:"expect"`
	TCP      string   `yaml:"tcp"`
	Exec     []string `yaml:"exec"`
	GRPC     string   `yaml:"grpc"`
	Service  string   `yaml:"service"`
	Postgres string   `yaml:"postgres"`
}

// Repository is the metadata repository and its fence.
type Repository struct {
	DSNFile string        `yaml:"dsn_file"`
	Role    string        `yaml:"role"`
	Secret  Secret        `yaml:"secret"`
	GiveUp  time.Duration `yaml:"give_up"`
}

// Secret says how the program gets the secret of its term; exactly one is set.
type Secret struct {
	Env      string      `yaml:"env"`
	Passfile string      `yaml:"passfile"`
	File     *SecretFile `yaml:"file"`
	Gate     *Gate       `yaml:"gate"`
}

// SecretFile is a rendered file.
type SecretFile struct {
	Template string `yaml:"template"`
	Path     string `yaml:"path"`
}

// Gate is a listener that logs in for the program.
type Gate struct {
	Listen       string `yaml:"listen"`
	PasswordFile string `yaml:"password_file"`
}

// Hooks are commands to run at events.
type Hooks struct {
	OnActive  []string `yaml:"on_active"`
	OnPassive []string `yaml:"on_passive"`
	OnStop    []string `yaml:"on_stop_failure"`
	PreStart  []string `yaml:"pre_start"`
}

// Commands returns the commands of each event.
func (h Hooks) Commands() map[string][]string {
	return map[string][]string{"on_active": h.OnActive, "on_passive": h.OnPassive, "pre_start": h.PreStart, "on_stop_failure": h.OnStop}
}

// Listen is where a process answers.
type Listen struct {
	HTTP       string `yaml:"http"`
	AgentCheck string `yaml:"agent_check"`
	Admin      string `yaml:"admin"`
	Advertise  string `yaml:"advertise"`
}

// Web is where a process answers that has nothing but its REST interface.
type Web struct {
	HTTP string `yaml:"http"`
}

// Agent is kind agent.
type Agent struct {
	Kind        string        `yaml:"kind"`
	Cluster     string        `yaml:"cluster"`
	Name        string        `yaml:"name"`
	Store       string        `yaml:"store" one:"etcd consul"`
	Etcd        Etcd          `yaml:"etcd"`
	Consul      Consul        `yaml:"consul"`
	Run         *AgentRun     `yaml:"run"`
	OnChange    OnChange      `yaml:"on_change"`
	Agents      []OneOf       `yaml:"agents"`
	Probe       Probe         `yaml:"probe"`
	Controllers []string      `yaml:"controllers"`
	Sidecars    []string      `yaml:"sidecars"`
	Retries     Retries       `yaml:"retries"`
	StopOnNone  bool          `yaml:"stop_on_vacancy"`
	StateFile   string        `yaml:"state_file"`
	Presence    bool          `yaml:"presence"`
	PresenceTTL time.Duration `yaml:"presence_ttl"`
	Listen      Web           `yaml:"listen"`
	Log         Log           `yaml:"log"`
}

// OneOf is one of many agents of one agentwatch.
type OneOf struct {
	Name     string    `yaml:"name"`
	Run      AgentRun  `yaml:"run"`
	OnChange *OnChange `yaml:"on_change"`
}

// AgentRun is an agent's process.
type AgentRun struct {
	Command     []string          `yaml:"command"`
	Env         map[string]string `yaml:"env"`
	Dir         string            `yaml:"dir"`
	User        string            `yaml:"user"`
	Files       []File            `yaml:"files"`
	StopSignal  string            `yaml:"stop_signal"`
	StopTimeout time.Duration     `yaml:"stop_timeout"`
	Overlap     bool              `yaml:"overlap"`
	Output      string            `yaml:"output"`
}

// File is rendered before each start.
type File struct {
	Template string   `yaml:"template"`
	Path     string   `yaml:"path"`
	Mode     string   `yaml:"mode"`
	Owner    string   `yaml:"owner"`
	Validate []string `yaml:"validate"`
}

// OnChange says how a running agent learns of a new active.
type OnChange struct {
	Action      string        `yaml:"action"`
	Exec        []string      `yaml:"exec"`
	ExecTimeout time.Duration `yaml:"exec_timeout"`
	Splay       time.Duration `yaml:"splay"`
}

// Probe is the agentwatch's own look at the startup port.
type Probe struct {
	Interval time.Duration `yaml:"interval"`
	Timeout  time.Duration `yaml:"timeout"`
	Fall     int           `yaml:"fall"`
}

// Retries is how long to try when no controller can be reached.
type Retries struct {
	Count int           `yaml:"count"`
	Every time.Duration `yaml:"every"`
}

// HAProxy is kind haproxy.
type HAProxy struct {
	Kind        string         `yaml:"kind"`
	Cluster     string         `yaml:"cluster"`
	Name        string         `yaml:"name"`
	Store       string         `yaml:"store" one:"etcd consul"`
	Etcd        Etcd           `yaml:"etcd"`
	Consul      Consul         `yaml:"consul"`
	Controllers []string       `yaml:"controllers"`
	HAProxy     HAProxyProcess `yaml:"haproxy"`
	Clusters    []Virtual      `yaml:"clusters"`
	Hooks       []ProxyHook    `yaml:"hooks"`
	Listen      Web            `yaml:"listen"`
	Log         Log            `yaml:"log"`
}

// HAProxyProcess is the HAProxy that is driven.
type HAProxyProcess struct {
	Template     string        `yaml:"template"`
	Config       string        `yaml:"config"`
	Bind         string        `yaml:"bind"`
	Mode         string        `yaml:"mode" one:"http tcp"`
	Check        string        `yaml:"check" one:"tcp active none"`
	HoldRequests time.Duration `yaml:"hold_requests"`
	Slots        int           `yaml:"slots"`
	AdminSocket  string        `yaml:"admin_socket"`
	MasterSocket string        `yaml:"master_socket"`
	SocketMode   string        `yaml:"socket_mode"`
	Stats        string        `yaml:"stats"`
	Spawn        bool          `yaml:"spawn"`
	Binary       string        `yaml:"binary"`
	Reload       []string      `yaml:"reload"`
	User         string        `yaml:"user"`
	Group        string        `yaml:"group"`
	Reconcile    time.Duration `yaml:"reconcile"`
}

// Virtual is one more cluster in the same HAProxy.
type Virtual struct {
	Cluster      string        `yaml:"cluster"`
	Controllers  []string      `yaml:"controllers"`
	Bind         string        `yaml:"bind"`
	Mode         string        `yaml:"mode" one:"http tcp"`
	Check        string        `yaml:"check" one:"tcp active none"`
	HoldRequests time.Duration `yaml:"hold_requests"`
	Slots        int           `yaml:"slots"`
}

// ProxyHook is a command that is told of every change of the active.
type ProxyHook struct {
	Command []string      `yaml:"command"`
	Timeout time.Duration `yaml:"timeout"`
}

func storeDefaults() (Etcd, Consul) {
	return Etcd{Endpoints: []string{"http://127.0.0.1:2379"}, Prefix: "/tanist"},
		Consul{Address: "http://127.0.0.1:8500", Service: ConsulService{ProxyPort: 21000}}
}

// NewController returns the defaults of kind controller. The name is the host's.
func NewController() *Controller {
	etcd, consul := storeDefaults()
	return &Controller{
		Kind: string(KindController), Name: hostName(), Priority: 100, Store: "etcd", Etcd: etcd, Consul: consul,
		Lease: Lease{Profile: "default"}, OnStoreLoss: "stop", Failsafe: Failsafe{Timeout: time.Second},
		Run: Run{
			Driver: "exec", StartTimeout: 30 * time.Second, StopSignal: "TERM", StopTimeout: 10 * time.Second, Drain: 25 * time.Millisecond,
			Restart: Restart{Within: time.Minute}, Output: "inherit",
		},
		Health:    Health{Interval: time.Second, Timeout: 800 * time.Millisecond, Rise: 1, Fall: 3},
		YieldWait: 30 * time.Second,
		Listen:    Listen{HTTP: "127.0.0.1:8710"},
		StateDir:  "/run/tanist",
		Watchdog:  "off",
		Log:       Log{Level: "info", Format: "auto"},
	}
}

// NewRepository returns the defaults of a controller's repository, if it has one.
func NewRepository() Repository { return Repository{GiveUp: 30 * time.Second} }

// NewAgent returns the defaults of kind agent.
func NewAgent() *Agent {
	etcd, consul := storeDefaults()
	return &Agent{
		Kind: string(KindAgent), Name: hostName(), Store: "etcd", Etcd: etcd, Consul: consul,
		OnChange: NewOnChange(), Probe: Probe{Interval: time.Second, Timeout: 800 * time.Millisecond, Fall: 3},
		Retries: Retries{Count: 10, Every: 2 * time.Second}, Presence: true, PresenceTTL: 20 * time.Second, Listen: Web{HTTP: "127.0.0.1:8720"},
		Log: Log{Level: "info", Format: "auto"},
	}
}

// NewAgentRun returns the defaults of an agent's process.
func NewAgentRun() AgentRun {
	return AgentRun{StopSignal: "TERM", StopTimeout: 5 * time.Second, Output: "inherit"}
}

// NewOnChange returns the defaults of what is done at a change.
func NewOnChange() OnChange { return OnChange{Action: "restart", ExecTimeout: 10 * time.Second} }

// NewHAProxy returns the defaults of kind haproxy.
func NewHAProxy() *HAProxy {
	etcd, consul := storeDefaults()
	return &HAProxy{
		Kind: string(KindHAProxy), Name: hostName(), Store: "etcd", Etcd: etcd, Consul: consul,
		HAProxy: HAProxyProcess{
			Config: "/etc/haproxy/haproxy.cfg", Bind: ":8080", Mode: "http", Check: "tcp", Slots: 3,
			AdminSocket: "/run/haproxy/admin.sock", MasterSocket: "/run/haproxy/master.sock", SocketMode: "600",
			Binary: "haproxy", Reconcile: 2 * time.Second,
		},
		Listen: Web{HTTP: "127.0.0.1:8730"},
		Log:    Log{Level: "info", Format: "auto"},
	}
}

// fresh returns a value of a type that stands in a list or may be left out, with its defaults.
func fresh(t reflect.Type) reflect.Value {
	switch t {
	case reflect.TypeFor[Repository]():
		return reflect.ValueOf(NewRepository())
	case reflect.TypeFor[AgentRun]():
		return reflect.ValueOf(NewAgentRun())
	case reflect.TypeFor[OnChange]():
		return reflect.ValueOf(NewOnChange())
	case reflect.TypeFor[OneOf]():
		return reflect.ValueOf(OneOf{Run: NewAgentRun()})
	case reflect.TypeFor[File]():
		return reflect.ValueOf(File{Mode: "0640"})
	case reflect.TypeFor[Virtual]():
		return reflect.ValueOf(Virtual{Mode: "http", Check: "tcp", Slots: 3})
	case reflect.TypeFor[ProxyHook]():
		return reflect.ValueOf(ProxyHook{Timeout: 10 * time.Second})
	}
	return reflect.Zero(t)
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}
