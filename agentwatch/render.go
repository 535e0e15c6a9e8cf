package agentwatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// Data is the input of the templates of commands, environment and files.
type Data struct {
	Cluster string
	Name    string // of the agent
	Active  ActiveData
	File    string // only in a validation command: the path of the candidate
}

// ActiveData is the controller to point at.
type ActiveData struct {
	URL        string
	Controller string        // its name; empty if only a probe found it
	Term       election.Term // zero if only a probe found it
	Scheme     string        // http or https
	Host       string        // of the URL; an IPv6 address without brackets
	Port       string        // of the URL; explicit even if it is the default one
	// URLs are the controller's other URLs by name (run.urls in its file).
	URLs map[string]string
}

func dataFor(cluster, name string, t Aim) (Data, error) {
	a, err := election.ParseURL(t.URL)
	if err != nil {
		return Data{}, fmt.Errorf("cannot point at the controller: %v", err)
	}
	named, err := t.URLs.Check(a)
	if err != nil {
		return Data{}, fmt.Errorf("cannot point at the controller: urls: %v", err)
	}
	urls := map[string]string{}
	for name, u := range named {
		urls[name] = u.String()
	}
	return Data{Cluster: cluster, Name: name, Active: ActiveData{
		URL: t.URL, Controller: t.Controller, Term: t.Term, Scheme: a.Scheme, Host: a.Host, Port: strconv.Itoa(int(a.Port)), URLs: urls,
	}}, nil
}

// namedURL finds the names of URLs in a template, which only the controller's file defines.
var namedURL = regexp.MustCompile(`\.Active\.URLs\.([a-z][a-z0-9_]*)`)

// sampleData returns data to try the templates of an agent with.
func sampleData(cluster string, a Agent) Data {
	d, _ := dataFor(cluster, a.Name, Aim{Controller: "controller", URL: "http://127.0.0.1:8080", Term: 1})
	d.File = "/candidate"
	texts := slices.Concat(a.Command, a.OnChange.Exec, slices.Collect(maps.Values(a.Env)))
	for _, f := range a.Files {
		text, _ := os.ReadFile(f.Template) // the rendering reports it
		texts = append(append(texts, string(text)), f.Validate...)
	}
	for _, text := range texts {
		for _, m := range namedURL.FindAllStringSubmatch(text, -1) {
			d.Active.URLs[m[1]] = d.Active.URL
		}
	}
	return d
}

// templates are the parsed templates of an agent; files are parsed at each rendering.
type templates struct {
	agent    Agent
	command  []*template.Template
	env      map[string]*template.Template
	onChange []*template.Template
	validate [][]*template.Template // per file
}

func parseOne(key, text string) (*template.Template, error) {
	t, err := template.New(key).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot read the template: %s", key, strings.TrimPrefix(err.Error(), "template: "))
	}
	return t, nil
}

func parseList(key string, texts []string) ([]*template.Template, error) {
	var list []*template.Template
	for i, text := range texts {
		t, err := parseOne(fmt.Sprintf("%s[%d]", key, i), text)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

func parseTemplates(a Agent) (*templates, error) {
	t := &templates{agent: a, env: map[string]*template.Template{}}
	var err error
	if len(a.Command) == 0 {
		return nil, errors.New("run.command: is empty")
	}
	if t.command, err = parseList("run.command", a.Command); err != nil {
		return nil, err
	}
	for k, v := range a.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			return nil, fmt.Errorf("run.env: %q is not a name of a variable", k)
		}
		if t.env[k], err = parseOne("run.env."+k, v); err != nil {
			return nil, err
		}
	}
	if a.OnChange.Action == Exec {
		if len(a.OnChange.Exec) == 0 {
			return nil, errors.New("on_change.exec: is empty")
		}
		if t.onChange, err = parseList("on_change.exec", a.OnChange.Exec); err != nil {
			return nil, err
		}
	}
	for i, f := range a.Files {
		list, err := parseList(fmt.Sprintf("run.files[%d].validate", i), f.Validate)
		if err != nil {
			return nil, err
		}
		t.validate = append(t.validate, list)
	}
	return t, nil
}

func execute(t *template.Template, d Data) (string, error) {
	var b bytes.Buffer
	if err := t.Execute(&b, d); err != nil {
		return "", fmt.Errorf("%s: cannot render: %s", t.Name(), strings.TrimPrefix(err.Error(), "template: "))
	}
	return b.String(), nil
}

func executeList(list []*template.Template, d Data) ([]string, error) {
	var out []string
	for _, t := range list {
		s, err := execute(t, d)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// rendered is the in-memory result of rendering everything for one target.
type rendered struct {
	command  []string
	env      []string // the agent's own, sorted
	told     []string // TANIST_*
	onChange []string
	files    [][]byte // in the order of Agent.Files
}

// sameStart reports whether a process started from r equals one started from o. The TANIST_
// variables are ignored: a running process can't learn new values, and an agent that reads them
// uses Restart.
func (r *rendered) sameStart(o *rendered) bool {
	return slices.Equal(r.command, o.command) && slices.Equal(r.env, o.env)
}

func (t *templates) render(d Data) (*rendered, error) {
	r := &rendered{}
	var err error
	if r.command, err = executeList(t.command, d); err != nil {
		return nil, err
	}
	if r.command[0] == "" {
		return nil, errors.New("run.command[0]: renders to nothing")
	}
	for _, k := range slices.Sorted(maps.Keys(t.env)) {
		v, err := execute(t.env[k], d)
		if err != nil {
			return nil, err
		}
		r.env = append(r.env, k+"="+v)
	}
	r.told = []string{
		"TANIST_CLUSTER=" + d.Cluster,
		"TANIST_NAME=" + d.Name,
		"TANIST_TERM=" + strconv.FormatUint(uint64(d.Active.Term), 10),
		"TANIST_ACTIVE_URL=" + d.Active.URL,
		"TANIST_ACTIVE_CONTROLLER=" + d.Active.Controller,
	}
	if r.onChange, err = executeList(t.onChange, d); err != nil {
		return nil, err
	}
	for i, f := range t.agent.Files {
		text, err := os.ReadFile(f.Template)
		if err != nil {
			return nil, fmt.Errorf("run.files[%d].template: %v", i, err)
		}
		ft, err := parseOne(fmt.Sprintf("run.files[%d].template", i), string(text))
		if err != nil {
			return nil, err
		}
		s, err := execute(ft, d)
		if err != nil {
			return nil, err
		}
		r.files = append(r.files, []byte(s))
		if _, err := executeList(t.validate[i], d); err != nil { // finds a typo before the first change
			return nil, err
		}
	}
	return r, nil
}

// prepared is a rendering whose files lie next to their final paths, validated. Exactly one of
// commit and discard is called, once.
type prepared struct {
	target  Aim
	r       *rendered
	pending []*renameio.PendingFile
}

const validateTimeout = 10 * time.Second

// prepare renders everything for target and validates the files. It changes nothing in use.
func (t *templates) prepare(ctx context.Context, cluster string, target Aim) (_ *prepared, err error) {
	d, err := dataFor(cluster, t.agent.Name, target)
	if err != nil {
		return nil, err
	}
	r, err := t.render(d)
	if err != nil {
		return nil, err
	}
	p := &prepared{target: target, r: r}
	defer func() {
		if err != nil {
			p.discard()
		}
	}()
	for i, f := range t.agent.Files {
		uid, gid, err := ownerIDs(f.Owner)
		if err != nil {
			return nil, fmt.Errorf("run.files[%d].owner: %v", i, err)
		}
		pf, err := renameio.NewPendingFile(f.Path, renameio.WithTempDir(filepath.Dir(f.Path)), renameio.WithStaticPermissions(f.Mode))
		if err != nil {
			return nil, fmt.Errorf("cannot write %s: %v", f.Path, err)
		}
		p.pending = append(p.pending, pf)
		if _, err := pf.Write(r.files[i]); err != nil {
			return nil, fmt.Errorf("cannot write %s: %v", f.Path, err)
		}
		if uid >= 0 || gid >= 0 {
			if err := pf.Chown(uid, gid); err != nil {
				return nil, fmt.Errorf("cannot write %s: %v", f.Path, err)
			}
		}
		if len(t.validate[i]) == 0 {
			continue
		}
		d.File = pf.Name()
		argv, err := executeList(t.validate[i], d)
		if err != nil {
			return nil, err
		}
		if err := runCommand(ctx, t.agent.start, argv, append(r.env, r.told...), validateTimeout); err != nil {
			return nil, fmt.Errorf("cannot put %s in place: its validation failed: %v", f.Path, err)
		}
	}
	return p, nil
}

// commit moves the files into place.
func (p *prepared) commit() error {
	for i, pf := range p.pending {
		if err := pf.CloseAtomicallyReplace(); err != nil {
			p.pending = p.pending[i:]
			p.discard()
			return fmt.Errorf("cannot put a file in place: %v", err)
		}
	}
	p.pending = nil
	return nil
}

func (p *prepared) discard() {
	for _, pf := range p.pending {
		_ = pf.Cleanup()
	}
	p.pending = nil
}

// ownerIDs resolves "user", "user:group" and ":group"; -1 means unchanged.
func ownerIDs(owner string) (uid, gid int, err error) {
	uid, gid = -1, -1
	if owner == "" {
		return uid, gid, nil
	}
	name, group, hasGroup := strings.Cut(owner, ":")
	if name != "" {
		u, err := user.Lookup(name)
		if err != nil {
			return 0, 0, fmt.Errorf("there is no user %q", name)
		}
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
	}
	if hasGroup {
		g, err := user.LookupGroup(group)
		if err != nil {
			return 0, 0, fmt.Errorf("there is no group %q", group)
		}
		gid, _ = strconv.Atoi(g.Gid)
	}
	return uid, gid, nil
}

// runCommand runs a short command without a shell; its process group is killed when it has ended or
// time is up.
func runCommand(ctx context.Context, start func(*exec.Cmd) error, argv, env []string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // ctx is honoured below, for the whole group
	cmd.Env = slices.Clone(env)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 100 * time.Millisecond
	if err := start(cmd); err != nil {
		return fmt.Errorf("cannot run %s: %v", argv[0], err)
	}
	pid := cmd.Process.Pid
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// Wait without reaping, so that the group's number is still valid when the group is killed.
		for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		}
	}()
	var late error
	select {
	case <-ended:
	case <-ctx.Done():
		late = fmt.Errorf("%s did not end within %v", argv[0], timeout)
	}
	_ = unix.Kill(-pid, unix.SIGKILL)
	<-ended
	err := cmd.Wait()
	switch {
	case late != nil:
		return late
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil
	}
	said, _, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
	return fmt.Errorf("%s: %v: %.200s", argv[0], err, said)
}

// signalPID signals a process through a descriptor, so that the number can't refer to another
// process by then.
func signalPID(pid int, sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}
