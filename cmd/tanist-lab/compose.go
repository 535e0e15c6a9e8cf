package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/election"
)

// The labs in containers, and the compose files of each.
var composeFiles = map[string][]string{
	"etcd":     {"docker-compose.yml", "haproxy.yml", "etcd.yml"},
	"consul":   {"docker-compose.yml", "consul.yml"},
	"mesh":     {"docker-compose.yml", "consul.yml", "mesh.yml"},
	"postgres": {"docker-compose.yml", "haproxy.yml", "postgres.yml"},
}

// lastOctets are the hosts' addresses in the lab's network, as in the compose files. Docker does not
// remember the address of a container that was disconnected.
var lastOctets = map[string]int{
	"etcd-1": 11, "etcd-2": 12, "etcd-3": 13, "consul-1": 11, "consul-2": 12, "consul-3": 13,
	"postgres": 14, "ctl-a": 21, "ctl-b": 22, "agt-1": 31, "agt-2": 32,
}

// containers is a lab of deploy/compose. Everything it does, it does with Docker's own commands.
type containers struct {
	lab     string // etcd, consul, mesh or postgres
	dir     string // deploy/compose
	project string // the prefix of all names
	network string // the first three octets of its addresses
	tool    []string
	env     []string // of Compose, beyond this process's own
	out     *printer
}

// composeCommand is `tanist-lab compose`: it runs a lab in containers and breaks it.
func composeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "compose", Short: "The same in containers (deploy/compose), with etcd, Consul, Consul's mesh or PostgreSQL",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var c containers
	f := cmd.PersistentFlags()
	f.StringVar(&c.dir, "dir", "deploy/compose", "directory of the compose files")
	f.StringVar(&c.project, "project", cmp.Or(os.Getenv("COMPOSE_PROJECT_NAME"), "tanist"), "prefix of all containers' names")
	add := func(use, short string, do func(ctx context.Context, c *containers, host string) error) {
		cmd.AddCommand(&cobra.Command{
			Use: use, Short: short, Args: cobra.RangeArgs(1, 2),
			RunE: func(cmd *cobra.Command, args []string) error {
				ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
				defer stop()
				c.lab, c.out = args[0], newPrinter(os.Stdout, false)
				if strings.HasPrefix(use, "smoke") { // a lab that is up must not be in its way
					c.project += "-smoke"
					c.env = []string{"LAB_PORTS=" + cmp.Or(os.Getenv("LAB_PORTS"), "28"), "LAB_NET=" + cmp.Or(os.Getenv("LAB_NET"), "10.213.78")}
				}
				if err := c.find(ctx); err != nil {
					return err
				}
				return do(ctx, &c, strings.Join(args[1:], ""))
			},
		})
	}
	add("up LAB", "Start a lab, and wait until all of it is healthy", func(ctx context.Context, c *containers, _ string) error { return c.up(ctx) })
	add("down LAB", "Stop a lab, and remove its containers and data", func(ctx context.Context, c *containers, _ string) error { return c.down(ctx) })
	for _, kind := range faults {
		add(kind.name+" LAB [HOST]", kind.short, func(ctx context.Context, c *containers, host string) error { return c.inject(ctx, kind.name, host) })
	}
	add("heal LAB", "Start, thaw and reconnect everything, and wait until all of it is healthy", func(ctx context.Context, c *containers, _ string) error {
		if err := errors.Join(c.note(ctx, 0, "", "heal"), c.heal(ctx)); err != nil {
			return err
		}
		return errors.Join(c.whole(ctx, 0, 2*time.Minute), c.list(ctx))
	})
	add("report LAB", "Show what clients and controllers noted, as a table and as a timeline (SVG)", func(ctx context.Context, c *containers, _ string) error {
		_, err := c.report(ctx)
		return err
	})
	add("smoke LAB", "Start a lab of its own, break it in every way, judge it from outside, and remove it", smoke)
	return cmd
}

// find finds Compose and the image.
func (c *containers) find(ctx context.Context) error {
	if composeFiles[c.lab] == nil {
		return &usageError{fmt.Sprintf("unknown lab %q: it is etcd, consul, mesh or postgres", c.lab)}
	}
	c.network = cmp.Or(os.Getenv("LAB_NET"), "10.213.77")
	for _, e := range c.env {
		if net, ok := strings.CutPrefix(e, "LAB_NET="); ok {
			c.network = net
		}
	}
	switch {
	case exec.CommandContext(ctx, "docker", "compose", "version").Run() == nil:
		c.tool = []string{"docker", "compose"}
	case exec.CommandContext(ctx, "docker-compose", "version").Run() == nil:
		c.tool = []string{"docker-compose"}
	default:
		return errors.New("cannot find docker compose or docker-compose, or the Docker daemon does not answer")
	}
	if _, err := os.Stat(filepath.Join(c.dir, ".env")); err != nil {
		return fmt.Errorf("the lab is not prepared (%v): run scripts/compose-image first", err)
	}
	return nil
}

// output runs a command and returns its output.
func output(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		text := strings.TrimSpace(errOut.String())
		if lines := strings.Split(text, "\n"); len(lines) > 20 {
			text = strings.Join(lines[len(lines)-20:], "\n")
		}
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args[:min(len(args), 6)], " "), err, text)
	}
	return out.String(), nil
}

// docker runs a docker command. Docker sometimes takes seconds; if it takes much longer, it is stuck.
func (c *containers) docker(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return output(ctx, "", nil, append([]string{"docker"}, args...)...)
}

// compose runs a Compose command with the files of the lab.
func (c *containers) compose(ctx context.Context, args ...string) (string, error) {
	all := slices.Clone(c.tool)
	env := append([]string{"COMPOSE_PROJECT_NAME=" + c.project}, c.env...)
	for _, f := range composeFiles[c.lab] {
		all = append(all, "-f", f)
	}
	return output(ctx, c.dir, env, append(append(all, "-p", c.project), args...)...)
}

// name returns the name of a service's container.
func (c *containers) name(service string) string { return c.project + "-" + service }

// exec runs a command in a container of the lab.
func (c *containers) exec(ctx context.Context, service string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return c.docker(ctx, append([]string{"exec", c.name(service)}, args...)...)
}

// up starts the lab and waits until it is whole.
func (c *containers) up(ctx context.Context) error {
	begun := time.Now()
	if err := c.writeSecrets(); err != nil {
		return err
	}
	c.out.step("up: " + strings.Join(composeFiles[c.lab], ", "))
	if _, err := c.compose(ctx, "up", "-d"); err != nil {
		return err
	}
	if err := c.whole(ctx, 0, 3*time.Minute); err != nil {
		return err
	}
	c.out.step(fmt.Sprintf("all healthy after %.0f s", time.Since(begun).Seconds()))
	return c.list(ctx)
}

func (c *containers) list(ctx context.Context) error {
	text, err := c.exec(ctx, "user", "tanist", "list")
	if err == nil {
		c.out.command("docker exec "+c.name("user")+" tanist list", text)
	}
	return err
}

// down stops the lab. A frozen container cannot be stopped, so everything is thawed first.
func (c *containers) down(ctx context.Context) error {
	paused, err := c.docker(ctx, "ps", "-q", "--filter", "label=com.docker.compose.project="+c.project, "--filter", "status=paused")
	if err != nil {
		return err
	}
	if ids := strings.Fields(paused); len(ids) > 0 {
		if _, err := c.docker(ctx, append([]string{"unpause"}, ids...)...); err != nil {
			return err
		}
	}
	_, err = c.compose(ctx, "down", "-v", "-t", "5", "--remove-orphans")
	return err
}

// picture returns the cluster as `tanist list` shows it.
func (c *containers) picture(ctx context.Context) (p election.ClusterRecord, err error) {
	text, err := c.exec(ctx, "user", "tanist", "list", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(text), &p)
	}
	if err != nil {
		return p, fmt.Errorf("cannot read the cluster: %w", err)
	}
	return p, nil
}

// active returns the active controller.
func (c *containers) active(ctx context.Context) (string, uint64, error) {
	p, err := c.picture(ctx)
	if err != nil {
		return "", 0, err
	}
	if !p.Active.Serving() {
		return "", uint64(p.Term), errors.New("no controller is active")
	}
	return p.Active.Controller, uint64(p.Active.Term), nil
}

// whole waits until the cluster is in its normal state: one active of a term above than, the other
// ready, and every agent at the active.
func (c *containers) whole(ctx context.Context, than uint64, limit time.Duration) error {
	return wait(ctx, limit, "the cluster to be whole", func(ctx context.Context) error {
		// Docker restarts a container that ends by itself only if it ran for ten seconds, so a sidecar
		// that did not find its host's Consul agent, which was started just before it, stays down.
		if err := c.revive(ctx); err != nil {
			return err
		}
		p, err := c.picture(ctx)
		switch {
		case err != nil:
			return err
		case !p.Active.Serving():
			return errors.New("no controller is active")
		case uint64(p.Active.Term) <= than:
			return fmt.Errorf("still term %d", p.Active.Term)
		case len(p.Controllers) != 2:
			return fmt.Errorf("%d controllers are present", len(p.Controllers))
		case len(p.Agents) != 2:
			return fmt.Errorf("%d agents are present", len(p.Agents))
		}
		for _, x := range p.Controllers {
			if x.Name != p.Active.Controller && x.State != election.StateReady {
				return fmt.Errorf("%s is %s (%s)", x.Name, x.State, x.Reason)
			}
		}
		for _, a := range p.Agents {
			if a.Term != p.Active.Term || a.State != "running" {
				return fmt.Errorf("%s is %s, at %s, term %d", a.Name, a.State, a.Follows, a.Term)
			}
		}
		return nil
	})
}

// revive starts the containers of hosts that have ended.
func (c *containers) revive(ctx context.Context) error {
	text, err := c.docker(ctx, "ps", "-a", "--filter", "label=com.docker.compose.project="+c.project,
		"--filter", "label=tanist.host", "--filter", "status=exited", "--format", "{{.Names}}")
	if names := strings.Fields(text); err == nil && len(names) > 0 {
		_, err = c.docker(ctx, append([]string{"start"}, names...)...)
	}
	return err
}

// container is one of a host's containers.
type container struct{ name, state string }

// on returns the containers of a host in the order in which they start: the one that has its network,
// then its Consul agent and its mesh proxy, and what needs them last.
func (c *containers) on(ctx context.Context, host string) ([]container, error) {
	text, err := c.docker(ctx, "ps", "-a", "--filter", "label=com.docker.compose.project="+c.project,
		"--filter", "label=tanist.host="+host, "--format", "{{.Names}} {{.State}}")
	if err != nil {
		return nil, err
	}
	var all []container
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 {
			all = append(all, container{f[0], f[1]})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there is no host %q in the lab", host)
	}
	slices.SortFunc(all, func(a, b container) int {
		return cmp.Or(-cmp.Compare(strings.Count(a.name, "-host-"), strings.Count(b.name, "-host-")), -cmp.Compare(len(a.name), len(b.name)))
	})
	return all, nil
}

// fault is something that can be done to a lab.
type fault struct {
	name, short string
	active      bool // without a host it is done to the active controller's
}

var faults = []fault{
	{"switchover", "Move the active controller as planned", false},
	{"kill", "Kill everything on a host (docker kill); without HOST the active controller's", true},
	{"stop", "Stop everything on a host (docker stop); without HOST the active controller's", true},
	{"hang", "Make the active controller hang", true},
	{"stall", "Freeze the sidecar, but not its guard (docker kill -s STOP); without HOST the active controller's", true},
	{"freeze", "Freeze everything on a host (docker pause); without HOST the active controller's", true},
	{"cut", "Cut a host off (docker network disconnect); without HOST the active controller's", true},
}

// inject does something to a host, and notes it.
func (c *containers) inject(ctx context.Context, what, host string) error {
	active, term, err := c.active(ctx)
	i := slices.IndexFunc(faults, func(f fault) bool { return f.name == what })
	if host == "" && faults[i].active {
		if err != nil {
			return fmt.Errorf("cannot find the active controller: %w", err)
		}
		host = active
	}
	if err := c.note(ctx, term, host, what); err != nil {
		return err
	}
	c.out.step(strings.TrimSpace(what + " " + host))
	return c.do(ctx, what, host)
}

// note notes what is about to be done.
func (c *containers) note(ctx context.Context, term uint64, host, what string) error {
	_, err := c.exec(ctx, "user", "tanist-lab", "note", "/evidence/actions", strconv.FormatUint(term, 10), host, what)
	return err
}

func (c *containers) do(ctx context.Context, what, host string) error {
	switch what {
	case "switchover":
		_, err := c.exec(ctx, "user", "tanist", "switchover", "-y")
		return err
	case "hang":
		_, err := c.exec(ctx, host, "tanist-lab", "hang", "http://127.0.0.1:8080")
		return err
	case "stall":
		_, err := c.docker(ctx, "kill", "-s", "STOP", c.name(host))
		return err
	}
	all, err := c.on(ctx, host)
	if err != nil {
		return err
	}
	names := make([]string, len(all))
	for i, one := range all {
		names[i] = one.name
	}
	switch what {
	case "kill":
		_, err = c.docker(ctx, append([]string{"kill"}, names...)...)
	case "stop":
		// One after the other, as a host's own init does: in the reverse order of their start.
		for _, name := range slices.Backward(names) {
			if _, err := c.docker(ctx, "stop", name); err != nil {
				return err
			}
		}
	case "freeze":
		_, err = c.docker(ctx, append([]string{"pause"}, names...)...)
	case "cut":
		_, err = c.docker(ctx, "network", "disconnect", c.project, names[0])
	}
	return err
}

// heal undoes everything that was done to the lab's hosts.
func (c *containers) heal(ctx context.Context) error {
	found := 0
	for host := range lastOctets {
		all, err := c.on(ctx, host)
		if err != nil {
			continue // not in this lab
		}
		found++
		if err := c.healHost(ctx, host, all); err != nil {
			return err
		}
	}
	if found == 0 {
		return fmt.Errorf("no container of the lab %s is there: task lab:up -- %[1]s", c.lab)
	}
	return nil
}

func (c *containers) healHost(ctx context.Context, host string, all []container) error {
	for _, one := range all {
		verb := map[string]string{"paused": "unpause", "exited": "start"}[one.state]
		if verb == "" {
			continue
		}
		if _, err := c.docker(ctx, verb, one.name); err != nil {
			return err
		}
	}
	if strings.HasPrefix(host, "ctl-") {
		if _, err := c.docker(ctx, "kill", "-s", "CONT", c.name(host)); err != nil {
			return err
		}
	}
	networks, err := c.docker(ctx, "inspect", "-f", "{{len .NetworkSettings.Networks}}", all[0].name)
	if err != nil || strings.TrimSpace(networks) != "0" {
		return err
	}
	_, err = c.docker(ctx, "network", "connect", "--ip", fmt.Sprintf("%s.%d", c.network, lastOctets[host]), c.project, all[0].name)
	return err
}

// runs reports whether a demo controller runs on a host.
func (c *containers) runs(ctx context.Context, host string) (bool, error) {
	text, err := c.docker(ctx, "top", c.name(host), "-eo", "pid,args")
	return strings.Contains(text, "tanist-lab controller"), err
}
