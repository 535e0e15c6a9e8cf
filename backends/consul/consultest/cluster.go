package consultest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/tanist/tanist/internal/testbed"
)

// Options selects what to start.
type Options struct {
	Servers int    // zero: 1
	Clients int    // client agents, one per imagined host
	ACL     bool   // access control with default deny; DNS may read the catalog
	TLS     bool   // the API and everything between agents
	Config  string // more configuration of every agent, in HCL
}

// Cluster is a Consul datacenter.
type Cluster struct {
	Servers []*Agent
	Clients []*Agent
	Token   string // a management token; empty without ACL
	CAFile  string // empty without TLS

	options Options
	binary  string
	dir     string
	ca      *authority

	mu      sync.Mutex
	clients map[string]*api.Client // by agent and token: an agent refuses too many connections
}

// startLimit bounds every wait for Consul; it is generous because test machines are busy.
const startLimit = 3 * time.Minute

// Start starts a cluster and returns when it is healthy. It ends with the test.
func Start(tb testing.TB, o Options) *Cluster {
	tb.Helper()
	c, err := Launch(tb.Context(), tb.TempDir(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		c.Close()
		if tb.Failed() {
			for _, a := range c.agents() {
				log := a.Log()
				tb.Logf("the end of the log of %s:\n%s", a.Name, log[max(0, len(log)-3000):])
			}
		}
	})
	return c
}

// Launch starts a cluster with its data in dir and returns when it is healthy. The caller closes
// it.
func Launch(ctx context.Context, dir string, o Options) (*Cluster, error) {
	binary, err := testbed.Consul().Build(ctx)
	if err != nil {
		return nil, err
	}
	c := &Cluster{options: o, binary: binary, dir: dir, clients: map[string]*api.Client{}}
	c.options.Servers = max(o.Servers, 1)
	if o.ACL {
		c.Token = uuid()
	}
	if o.TLS {
		c.CAFile = filepath.Join(dir, "ca.pem")
		if c.ca, err = newAuthority(c.CAFile); err != nil {
			return nil, fmt.Errorf("cannot make certificates for Consul: %v", err)
		}
	}
	if err := c.start(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("cannot start Consul: %w", err)
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	// Clusters of this and other processes each pick a random /24, and trying it finds out whether
	// it is taken.
	net1, net2, host := 64+mathrand.N(128), mathrand.N(256), 10
	pick := func() string {
		host++
		return fmt.Sprintf("127.%d.%d.%d", net1, net2, host)
	}
	var join []string
	for i := range c.options.Servers + c.options.Clients {
		ip, err := freeAddress(ctx, pick)
		if err != nil {
			return err
		}
		a := &Agent{Name: fmt.Sprintf("server-%d", i+1), IP: ip, Server: true, cluster: c, log: &tail{}}
		if i >= c.options.Servers {
			a.Name, a.Server = fmt.Sprintf("host-%d", i-c.options.Servers+1), false
		}
		a.dir = filepath.Join(c.dir, a.Name)
		if a.Server {
			c.Servers = append(c.Servers, a)
			join = append(join, ip)
		} else {
			c.Clients = append(c.Clients, a)
		}
	}
	for _, a := range c.agents() {
		if err := a.configure(join, c.options.Servers); err != nil {
			return err
		}
		if err := a.Start(); err != nil {
			return err
		}
	}
	if err := c.Wait(ctx); err != nil {
		return err
	}
	for _, a := range c.agents() {
		if !a.runs() {
			return fmt.Errorf("%s ended at once:\n%s", a.Name, a.Log())
		}
	}
	if c.options.ACL {
		return c.openDNS(ctx)
	}
	return nil
}

func (c *Cluster) agents() []*Agent { return append(append([]*Agent{}, c.Servers...), c.Clients...) }

// Close kills every agent.
func (c *Cluster) Close() {
	for _, a := range c.agents() {
		_ = a.Kill()
	}
}

// Client returns a client of an agent with all rights.
func (c *Cluster) Client(a *Agent) (*api.Client, error) { return c.ClientWith(a, c.Token) }

// ClientWith is Client with another token.
func (c *Cluster) ClientWith(a *Agent, token string) (*api.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if client := c.clients[a.Name+" "+token]; client != nil {
		return client, nil
	}
	config := &api.Config{Address: a.URL(), Token: token, Transport: &http.Transport{MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second}}
	if c.CAFile != "" {
		config.TLSConfig.CAFile = c.CAFile
	}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("cannot make a client of %s: %v", a.Name, err)
	}
	c.clients[a.Name+" "+token] = client
	return client, nil
}

// Wait returns once every running agent responds, all running servers are voters with a leader, and
// every running agent is in the catalog.
func (c *Cluster) Wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var last error
	for {
		if last = c.healthy(ctx); last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			var logs strings.Builder
			for _, a := range c.agents() {
				log := a.Log()
				fmt.Fprintf(&logs, "\n%s:\n%s", a.Name, log[max(0, len(log)-3000):])
			}
			return fmt.Errorf("it is not healthy after %v: %v%s", startLimit, last, logs.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *Cluster) healthy(ctx context.Context) error {
	for _, a := range c.agents() {
		if !a.runs() {
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, 20*time.Second)
		err := c.healthyAgent(attempt, a)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", a.Name, err)
		}
	}
	return nil
}

func (c *Cluster) healthyAgent(ctx context.Context, a *Agent) error {
	client, err := c.Client(a)
	if err != nil {
		return err
	}
	query := (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
	if a.Server {
		raft, err := client.Operator().RaftGetConfiguration(query)
		if err != nil {
			return err
		}
		leader, voters := false, 0
		for _, s := range raft.Servers {
			leader = leader || s.Leader
			if s.Voter {
				voters++
			}
		}
		if !leader || voters < c.options.Servers {
			return fmt.Errorf("leader %v, %d voters", leader, voters)
		}
	}
	checks, _, err := client.Health().Node(a.Name, query)
	if err != nil {
		return err
	}
	if len(checks) == 0 || checks.AggregatedStatus() != api.HealthPassing {
		return errors.New("it is not passing in the catalog")
	}
	return nil
}

func (a *Agent) runs() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done == nil {
		return false
	}
	select {
	case <-a.done:
		return false
	default:
		return true
	}
}

// Leader returns the server that leads.
func (c *Cluster) Leader(ctx context.Context) (*Agent, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for ctx.Err() == nil {
		for _, a := range c.Servers {
			if !a.runs() {
				continue
			}
			client, err := c.Client(a)
			if err != nil {
				return nil, err
			}
			attempt, done := context.WithTimeout(ctx, 2*time.Second)
			self, err := client.Status().LeaderWithQueryOptions(new(api.QueryOptions).WithContext(attempt))
			done()
			if err != nil {
				continue
			}
			for _, s := range c.Servers {
				if strings.HasPrefix(self, s.IP+":") && s.runs() {
					return s, nil
				}
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, errors.New("cannot find the leader of Consul")
}

// Grant creates a token with the given policies, which are HCL, and returns its secret.
func (c *Cluster) Grant(ctx context.Context, name string, policies ...string) (string, error) {
	client, err := c.Client(c.Servers[0])
	if err != nil {
		return "", err
	}
	options := new(api.WriteOptions).WithContext(ctx)
	token := &api.ACLToken{Description: name}
	for i, rules := range policies {
		policy := fmt.Sprintf("%s-%d", name, i+1)
		if _, _, err := client.ACL().PolicyCreate(&api.ACLPolicy{Name: policy, Rules: rules}, options); err != nil {
			return "", fmt.Errorf("cannot create the policy %s: %v", policy, err)
		}
		token.Policies = append(token.Policies, &api.ACLTokenPolicyLink{Name: policy})
	}
	created, _, err := client.ACL().TokenCreate(token, options)
	if err != nil {
		return "", fmt.Errorf("cannot create the token %s: %v", name, err)
	}
	// Every agent must know the token before its use: followers learn of it a moment later.
	for _, a := range c.agents() {
		if !a.runs() {
			continue
		}
		own, err := c.ClientWith(a, created.SecretID)
		if err != nil {
			return "", err
		}
		for ctx.Err() == nil {
			if _, _, err = own.ACL().TokenReadSelf(&api.QueryOptions{AllowStale: true}); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return created.SecretID, ctx.Err()
}

const anonymous = "00000000-0000-0000-0000-000000000002"

// openDNS lets requests without a token read the catalog, which DNS needs.
func (c *Cluster) openDNS(ctx context.Context) error {
	client, err := c.Client(c.Servers[0])
	if err != nil {
		return err
	}
	options := new(api.WriteOptions).WithContext(ctx)
	_, _, err = client.ACL().PolicyCreate(&api.ACLPolicy{
		Name: "dns", Rules: `node_prefix "" { policy = "read" } service_prefix "" { policy = "read" } query_prefix "" { policy = "read" }`,
	}, options)
	if err != nil {
		return fmt.Errorf("cannot create the policy of DNS: %v", err)
	}
	_, _, err = client.ACL().TokenUpdate(&api.ACLToken{
		AccessorID: anonymous, Policies: []*api.ACLTokenPolicyLink{{Name: "dns"}},
	}, options)
	if err != nil {
		return fmt.Errorf("cannot update the anonymous token: %v", err)
	}
	return nil
}

// Binary returns the path of the consul command that the cluster runs.
func (c *Cluster) Binary() string { return c.binary }

// Env returns the environment that leads the consul command to an agent, with a token.
func (c *Cluster) Env(a *Agent, token string) []string {
	env := append(withoutConsul(os.Environ()), "CONSUL_HTTP_ADDR="+a.URL())
	if token != "" {
		env = append(env, "CONSUL_HTTP_TOKEN="+token)
	}
	if c.CAFile != "" {
		env = append(env, "CONSUL_CACERT="+c.CAFile)
	}
	return env
}

func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
