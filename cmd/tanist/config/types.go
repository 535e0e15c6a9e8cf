package config

import (
	"os"
	"reflect"
	"time"

	"github.com/tanist/tanist/agentwatch"
	consulstore "github.com/tanist/tanist/backends/consul"
	etcdstore "github.com/tanist/tanist/backends/etcd"
	"github.com/tanist/tanist/haproxy"
	"github.com/tanist/tanist/notify"
	"github.com/tanist/tanist/plugin/host"
	"github.com/tanist/tanist/postgres"
)

// Kind is the process that a file configures.
type Kind string

// The kinds.
const (
	KindController Kind = "controller" // tanist sidecar
	KindAgent      Kind = "agent"      // tanist agentwatch
	KindHAProxy    Kind = "haproxy"    // tanist haproxy
	KindVIP        Kind = "vip"        // tanist vip
)

// Kinds lists all kinds.
func Kinds() []Kind { return []Kind{KindController, KindAgent, KindHAProxy, KindVIP} }

// The yaml tags of the fields are the keys of a file. The tag one lists the only values that a text
// may have.

// Etcd locates an etcd cluster.
type Etcd struct {
	Endpoints    []string `yaml:"endpoints"`
	Prefix       string   `yaml:"prefix"`
	Username     string   `yaml:"username"`
	PasswordFile string   `yaml:"password_file"`
	TLS          TLS      `yaml:"tls"`

	// Password comes from $ETCDCTL_USER or $ETCDCTL_PASSWORD; no file has it.
	Password Hidden
}

// Consul locates a Consul agent.
type Consul struct {
	Address    string        `yaml:"address"`
	Others     []string      `yaml:"others"`
	TokenFile  string        `yaml:"token_file"`
	Datacenter string        `yaml:"datacenter"`
	TLS        TLS           `yaml:"tls"`
	Service    ConsulService `yaml:"service"`

	// Token comes from $CONSUL_HTTP_TOKEN; no file has it.
	Token Hidden
}

// Postgres locates the server that keeps the store. Where it says nothing, libpq's variables do.
type Postgres struct {
	DSN          string `yaml:"dsn"`
	DSNFile      string `yaml:"dsn_file"`
	PasswordFile string `yaml:"password_file"`
}

// Plugin is what a file has about one plugin.
type Plugin struct {
	// SHA256 pins the plugin's file; empty: any content.
	SHA256 string `yaml:"sha256"`
	// Plain speaks to it without TLS, over a socket that only this user and root can reach.
	Plain bool `yaml:"plain"`
	// Config is for the plugin.
	Config map[string]string `yaml:"config"`
	// What is expected of its store; zero: the default.
	MinTTL      time.Duration `yaml:"min_ttl"`
	ExpirySlack time.Duration `yaml:"expiry_slack"`
	LeaderGap   time.Duration `yaml:"leader_gap"`
}

// Hidden is a text that prints as "***" in every format.
type Hidden string

// String implements [fmt.Stringer].
func (Hidden) String() string { return "***" }

// GoString implements [fmt.GoStringer].
func (Hidden) GoString() string { return "***" }

// MarshalText implements [encoding.TextMarshaler].
func (Hidden) MarshalText() ([]byte, error) { return []byte("***"), nil }

// ConsulService is the registration of the active.
type ConsulService struct {
	Name    string `yaml:"name"`
	Connect bool   `yaml:"connect"`
	// ProxyPort is the port of the Connect proxy next to the active; 0: 21000.
	ProxyPort int `yaml:"proxy_port"`
}

// TLS configures trust and our own certificate.
type TLS struct {
	CAFile     string `yaml:"ca_file"`
	CertFile   string `yaml:"cert_file"`
	KeyFile    string `yaml:"key_file"`
	ServerName string `yaml:"server_name"`
}

// Log configures logging.
type Log struct {
	Level  string `yaml:"level" one:"trace debug info warn error"`
	Format string `yaml:"format" one:"auto console json"`
}

// Controller is kind controller.
type Controller struct {
	Kind        string            `yaml:"kind"`
	Cluster     string            `yaml:"cluster"`
	Name        string            `yaml:"name"`
	Priority    int               `yaml:"priority"`
	NoFailover  bool              `yaml:"nofailover"`
	Store       string            `yaml:"store" one:"etcd consul postgres plugin:NAME"`
	Etcd        Etcd              `yaml:"etcd"`
	Consul      Consul            `yaml:"consul"`
	Postgres    Postgres          `yaml:"postgres"`
	Plugins     map[string]Plugin `yaml:"plugins"`
	PluginDirs  []string          `yaml:"plugin_dirs"`
	Lease       Lease             `yaml:"lease"`
	OnStoreLoss string            `yaml:"on_store_loss" one:"stop failsafe keep"`
	Failsafe    Failsafe          `yaml:"failsafe"`
	Run         Run               `yaml:"run"`
	Health      Health            `yaml:"health"`
	Fit         []FitCheck        `yaml:"fit"`
	Repository  *Repository       `yaml:"repository"`
	YieldWait   time.Duration     `yaml:"yield_wait"`
	Interval    time.Duration     `yaml:"failover_interval"`
	VirtualIP   []VirtualIP       `yaml:"virtual_ip"`
	Hooks       Hooks             `yaml:"hooks"`
	Notify      []Notify          `yaml:"notify"`
	Listen      Listen            `yaml:"listen"`
	StateDir    string            `yaml:"state_dir"`
	Watchdog    string            `yaml:"watchdog" one:"off auto required"`
	Log         Log               `yaml:"log"`
}

// Lease is the timing of the lease: a profile, and the differences from it. A zero duration means
// the profile's.
type Lease struct {
	Profile      string        `yaml:"profile" one:"default fast"`
	TTL          time.Duration `yaml:"ttl"`
	Validity     time.Duration `yaml:"validity"`
	RenewEvery   time.Duration `yaml:"renew_every"`
	StopBudget   time.Duration `yaml:"stop_budget"`
	Silence      time.Duration `yaml:"silence"`
	LeaderChange bool          `yaml:"leader_change"`
}

// Failsafe configures how sidecars ask each other while the store is away.
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
	EnvFrom      EnvFrom           `yaml:"env_from"`
	NoNewPrivs   bool              `yaml:"no_new_privs"`
	OOMScoreAdj  int               `yaml:"oom_score_adj"`
	Dir          string            `yaml:"dir"`
	User         string            `yaml:"user"`
	Migrate      Migrate           `yaml:"migrate"`
	URL          string            `yaml:"url"`
	URLs         map[string]string `yaml:"urls"`
	StartTimeout time.Duration     `yaml:"start_timeout"`
	StopSignal   string            `yaml:"stop_signal"`
	StopTimeout  time.Duration     `yaml:"stop_timeout"`
	KillTimeout  time.Duration     `yaml:"kill_timeout"`
	Drain        time.Duration     `yaml:"drain"`
	Restart      Restart           `yaml:"restart"`
	Output       string            `yaml:"output"`
}

// Migrate is a command that runs once per term, before the first start of the controller.
type Migrate struct {
	Command []string      `yaml:"command"`
	Timeout time.Duration `yaml:"timeout"`
}

// Restart is the budget of restarts in place.
type Restart struct {
	Local  int           `yaml:"local"`
	Within time.Duration `yaml:"within"`
}

// Health configures the controller's health checks.
type Health struct {
	Interval time.Duration `yaml:"interval"`
	Timeout  time.Duration `yaml:"timeout"`
	Rise     int           `yaml:"rise"`
	Fall     int           `yaml:"fall"`
	Checks   []Check       `yaml:"checks"`
}

// Check is one check; exactly one of the kinds is set.
type Check struct {
	Name       string            `yaml:"name"`
	HTTP       string            `yaml:"http"`
	Method     string            `yaml:"method" one:"GET HEAD POST OPTIONS"`
	Headers    map[string]string `yaml:"headers"`
	Expect     []string          `yaml:"expect"`
	ExpectBody string            `yaml:"expect_body"`
	TLS        *CheckTLS         `yaml:"tls"`
	TCP        string            `yaml:"tcp"`
	Exec       []string          `yaml:"exec"`
	GRPC       string            `yaml:"grpc"`
	Service    string            `yaml:"service"`
	Postgres   string            `yaml:"postgres"`
	Plugin     string            `yaml:"plugin"`
	Config     map[string]string `yaml:"config"`
}

// CheckTLS configures how a check verifies the program's certificate.
type CheckTLS struct {
	CAFile     string `yaml:"ca_file"`
	CertFile   string `yaml:"cert_file"`
	KeyFile    string `yaml:"key_file"`
	ServerName string `yaml:"server_name"`
	Insecure   bool   `yaml:"insecure_skip_verify"`
}

// FitCheck is a command that a passive runs to find out whether its controller could be started.
type FitCheck struct {
	Name     string        `yaml:"name"`
	Command  []string      `yaml:"command"`
	Interval time.Duration `yaml:"interval"`
	Timeout  time.Duration `yaml:"timeout"`
}

// Repository configures the metadata repository and its fence.
type Repository struct {
	DSNFile string        `yaml:"dsn_file"`
	Role    string        `yaml:"role"`
	Secret  Secret        `yaml:"secret"`
	GiveUp  time.Duration `yaml:"give_up"`
}

// Secret selects how the program receives the secret of its term; exactly one field is set.
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

// Gate configures a listener that logs in for the program.
type Gate struct {
	Listen       string `yaml:"listen"`
	PasswordFile string `yaml:"password_file"`
}

// VirtualIP is an address that follows the active.
type VirtualIP struct {
	Address   string `yaml:"address"`
	Interface string `yaml:"interface"`
}

// Hooks are commands to run at events.
type Hooks struct {
	OnActive  []Command `yaml:"on_active"`
	OnPassive []Command `yaml:"on_passive"`
	OnStop    []Command `yaml:"on_stop_failure"`
	PreStart  []Command `yaml:"pre_start"`
}

// Command is a program and its arguments. A file may also have it as one text, which is split at
// blanks.
type Command []string

var commandType = reflect.TypeFor[Command]()

// Commands returns the commands by event.
func (h Hooks) Commands() map[string][]Command {
	return map[string][]Command{"on_active": h.OnActive, "on_passive": h.OnPassive, "pre_start": h.PreStart, "on_stop_failure": h.OnStop}
}

// Notify is a channel that tells people what happens.
type Notify struct {
	Name    string        `yaml:"name"`
	Kind    string        `yaml:"kind" one:"webhook slack teams alertmanager ntfy email command"`
	Events  []string      `yaml:"events"`
	Timeout time.Duration `yaml:"timeout"`

	URL       string            `yaml:"url"`
	URLFile   string            `yaml:"url_file"`
	TokenFile string            `yaml:"token_file"`
	Headers   map[string]string `yaml:"headers"`
	Template  string            `yaml:"template"`
	CAFile    string            `yaml:"ca_file"`

	Server       string   `yaml:"server"`
	From         string   `yaml:"from"`
	To           []string `yaml:"to"`
	Username     string   `yaml:"username"`
	PasswordFile string   `yaml:"password_file"`
	TLS          string   `yaml:"tls" one:"starttls tls none"`

	Command []string `yaml:"command"`
}

// Listen configures the addresses of a process's interfaces.
type Listen struct {
	HTTP       string `yaml:"http"`
	AgentCheck string `yaml:"agent_check"`
	Admin      string `yaml:"admin"`
	Advertise  string `yaml:"advertise"`
	SecretFile string `yaml:"secret_file"`
	Open       string `yaml:"open"`
	// HTTPS is the address of the same interface over TLS. The authority in TLS is that of clients.
	HTTPS  string   `yaml:"https"`
	TLS    TLS      `yaml:"tls"`
	Access []Access `yaml:"access"`
}

// Access gives a role at the REST interface to the clients that exactly one of its other keys
// describes.
type Access struct {
	Role        string `yaml:"role" one:"viewer operator admin"`
	User        string `yaml:"user"`
	Group       string `yaml:"group"`
	TokenFile   string `yaml:"token_file"`
	Name        string `yaml:"name"`
	Certificate string `yaml:"certificate"`
}

// Web configures the address of a process that has only a REST interface.
type Web struct {
	HTTP       string `yaml:"http"`
	SecretFile string `yaml:"secret_file"`
	Open       string `yaml:"open"`
}

// Agent is kind agent.
type Agent struct {
	Kind        string            `yaml:"kind"`
	Cluster     string            `yaml:"cluster"`
	Name        string            `yaml:"name"`
	Store       string            `yaml:"store" one:"etcd consul postgres plugin:NAME"`
	Etcd        Etcd              `yaml:"etcd"`
	Consul      Consul            `yaml:"consul"`
	Postgres    Postgres          `yaml:"postgres"`
	Plugins     map[string]Plugin `yaml:"plugins"`
	PluginDirs  []string          `yaml:"plugin_dirs"`
	Run         *AgentRun         `yaml:"run"`
	OnChange    OnChange          `yaml:"on_change"`
	Agents      []OneOf           `yaml:"agents"`
	Probe       Probe             `yaml:"probe"`
	Controllers []string          `yaml:"controllers"`
	Sidecars    []string          `yaml:"sidecars"`
	Failsafe    AgentFailsafe     `yaml:"failsafe"`
	Retries     Retries           `yaml:"retries"`
	StopOnNone  bool              `yaml:"stop_on_vacancy"`
	StateFile   string            `yaml:"state_file"`
	Presence    bool              `yaml:"presence"`
	PresenceTTL time.Duration     `yaml:"presence_ttl"`
	Listen      Web               `yaml:"listen"`
	Log         Log               `yaml:"log"`
}

// AgentFailsafe configures how sidecars are asked while the store is away.
type AgentFailsafe struct {
	SecretFile string `yaml:"secret_file"`
}

// OneOf is one of several agents of one agentwatch.
type OneOf struct {
	Name     string    `yaml:"name"`
	Run      AgentRun  `yaml:"run"`
	OnChange *OnChange `yaml:"on_change"`
}

// AgentRun configures an agent's process.
type AgentRun struct {
	Command     []string          `yaml:"command"`
	Env         map[string]string `yaml:"env"`
	EnvFrom     EnvFrom           `yaml:"env_from"`
	NoNewPrivs  bool              `yaml:"no_new_privs"`
	OOMScoreAdj int               `yaml:"oom_score_adj"`
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

// OnChange configures how a running agent learns of a new active.
type OnChange struct {
	Action      string        `yaml:"action"`
	Exec        []string      `yaml:"exec"`
	ExecTimeout time.Duration `yaml:"exec_timeout"`
	Splay       time.Duration `yaml:"splay"`
}

// Probe configures the agentwatch's own probe of the startup ports.
type Probe struct {
	Interval time.Duration `yaml:"interval"`
	Timeout  time.Duration `yaml:"timeout"`
	Fall     int           `yaml:"fall"`
}

// Retries configures how long to retry when no controller is reachable.
type Retries struct {
	Count int           `yaml:"count"`
	Every time.Duration `yaml:"every"`
}

// HAProxy is kind haproxy.
type HAProxy struct {
	Kind        string            `yaml:"kind"`
	Cluster     string            `yaml:"cluster"`
	Name        string            `yaml:"name"`
	Store       string            `yaml:"store" one:"etcd consul postgres plugin:NAME"`
	Etcd        Etcd              `yaml:"etcd"`
	Consul      Consul            `yaml:"consul"`
	Postgres    Postgres          `yaml:"postgres"`
	Plugins     map[string]Plugin `yaml:"plugins"`
	PluginDirs  []string          `yaml:"plugin_dirs"`
	Controllers []string          `yaml:"controllers"`
	HAProxy     HAProxyProcess    `yaml:"haproxy"`
	Clusters    []Virtual         `yaml:"clusters"`
	Hooks       []ProxyHook       `yaml:"hooks"`
	Listen      Web               `yaml:"listen"`
	Log         Log               `yaml:"log"`
}

// HAProxyProcess configures the HAProxy that Tanist controls.
type HAProxyProcess struct {
	Template     string        `yaml:"template"`
	Config       string        `yaml:"config"`
	Files        []string      `yaml:"files"`
	Overwrite    bool          `yaml:"overwrite"`
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

// Virtual is an additional cluster of the same HAProxy.
type Virtual struct {
	Cluster      string        `yaml:"cluster"`
	Controllers  []string      `yaml:"controllers"`
	Bind         string        `yaml:"bind"`
	Mode         string        `yaml:"mode" one:"http tcp"`
	Check        string        `yaml:"check" one:"tcp active none"`
	HoldRequests time.Duration `yaml:"hold_requests"`
	Slots        int           `yaml:"slots"`
}

// ProxyHook is a command that runs at every change of the active.
type ProxyHook struct {
	Command []string      `yaml:"command"`
	Timeout time.Duration `yaml:"timeout"`
}

// VIP is kind vip.
type VIP struct {
	Kind       string            `yaml:"kind"`
	Cluster    string            `yaml:"cluster"`
	Name       string            `yaml:"name"`
	Controller string            `yaml:"controller"`
	Store      string            `yaml:"store" one:"etcd consul postgres plugin:NAME"`
	Etcd       Etcd              `yaml:"etcd"`
	Consul     Consul            `yaml:"consul"`
	Postgres   Postgres          `yaml:"postgres"`
	Plugins    map[string]Plugin `yaml:"plugins"`
	PluginDirs []string          `yaml:"plugin_dirs"`
	VirtualIP  []VirtualIP       `yaml:"virtual_ip"`
	StateDir   string            `yaml:"state_dir"`
	Listen     Web               `yaml:"listen"`
	Log        Log               `yaml:"log"`
}

func storeDefaults() (Etcd, Consul) {
	return Etcd{Endpoints: []string{"http://127.0.0.1:2379"}, Prefix: etcdstore.DefaultPrefix},
		Consul{Address: consulstore.DefaultAddress, Service: ConsulService{ProxyPort: 21000}}
}

// NewController returns the defaults of kind controller. The name is the host's.
func NewController() *Controller {
	etcd, consul := storeDefaults()
	return &Controller{
		Kind: string(KindController), Name: hostName(), Priority: 100, Store: "etcd", Etcd: etcd, Consul: consul, PluginDirs: host.Dirs(),
		Lease: Lease{Profile: "default"}, OnStoreLoss: "stop", Failsafe: Failsafe{Timeout: time.Second},
		Run: Run{
			EnvFrom: EnvFrom{"all"}, NoNewPrivs: true,
			Driver: "exec", StartTimeout: 30 * time.Second, StopSignal: "TERM", StopTimeout: 10 * time.Second, KillTimeout: 3 * time.Second, Drain: 25 * time.Millisecond,
			Migrate: Migrate{Timeout: 5 * time.Minute}, Restart: Restart{Within: time.Minute}, Output: "inherit",
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
func NewRepository() Repository { return Repository{GiveUp: postgres.DefaultGiveUp} }

// NewAgent returns the defaults of kind agent.
func NewAgent() *Agent {
	etcd, consul := storeDefaults()
	watch := agentwatch.Defaults()
	return &Agent{
		Kind: string(KindAgent), Name: hostName(), Store: "etcd", Etcd: etcd, Consul: consul, PluginDirs: host.Dirs(),
		OnChange: NewOnChange(), Probe: Probe(watch.Probe),
		Retries: Retries(watch.Retries), Presence: true, PresenceTTL: watch.PresenceTTL, Listen: Web{HTTP: "127.0.0.1:8720"},
		Log: Log{Level: "info", Format: "auto"},
	}
}

// NewAgentRun returns the defaults of an agent's process.
func NewAgentRun() AgentRun {
	return AgentRun{EnvFrom: EnvFrom{"all"}, NoNewPrivs: true, StopSignal: "TERM", StopTimeout: agentwatch.AgentDefaults().StopTimeout, Output: "inherit"}
}

// NewOnChange returns the defaults of the reaction to a change.
func NewOnChange() OnChange {
	change := agentwatch.AgentDefaults().OnChange
	return OnChange{Action: change.Action, ExecTimeout: change.ExecTimeout}
}

// NewHAProxy returns the defaults of kind haproxy.
func NewHAProxy() *HAProxy {
	etcd, consul := storeDefaults()
	proxy, cluster := haproxy.Defaults(), haproxy.ClusterDefaults()
	return &HAProxy{
		Kind: string(KindHAProxy), Name: hostName(), Store: "etcd", Etcd: etcd, Consul: consul, PluginDirs: host.Dirs(),
		HAProxy: HAProxyProcess{
			Config: "/etc/haproxy/haproxy.cfg", Bind: ":8080", Mode: cluster.Mode, Check: cluster.Check, Slots: cluster.Slots,
			AdminSocket: "/run/haproxy/admin.sock", MasterSocket: "/run/haproxy/master.sock", SocketMode: proxy.SocketMode,
			Binary: proxy.Binary, Reconcile: proxy.Reconcile,
		},
		Listen: Web{HTTP: "127.0.0.1:8730"},
		Log:    Log{Level: "info", Format: "auto"},
	}
}

// NewVIP returns the defaults of kind vip.
func NewVIP() *VIP {
	etcd, consul := storeDefaults()
	return &VIP{
		Kind: string(KindVIP), Name: hostName(), Store: "etcd", Etcd: etcd, Consul: consul, PluginDirs: host.Dirs(),
		StateDir: "/run/tanist", Listen: Web{HTTP: "127.0.0.1:8740"}, Log: Log{Level: "info", Format: "auto"},
	}
}

// fresh returns a value, with its defaults, of a type that is optional or a list item.
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
	case reflect.TypeFor[Check]():
		return reflect.ValueOf(Check{Method: "GET"})
	case reflect.TypeFor[Notify]():
		return reflect.ValueOf(Notify{TLS: notify.MailStartTLS, Timeout: notify.DefaultTimeout})
	case reflect.TypeFor[FitCheck]():
		return reflect.ValueOf(FitCheck{Interval: 30 * time.Second, Timeout: 10 * time.Second})
	case reflect.TypeFor[File]():
		return reflect.ValueOf(File{Mode: "0640"})
	case reflect.TypeFor[Virtual]():
		d := haproxy.ClusterDefaults()
		return reflect.ValueOf(Virtual{Mode: d.Mode, Check: d.Check, Slots: d.Slots})
	case reflect.TypeFor[ProxyHook]():
		return reflect.ValueOf(ProxyHook{Timeout: haproxy.HookDefaults().Timeout})
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
