package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/backends/etcd"
	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
	"github.com/tanist/tanist/plugin"
	"github.com/tanist/tanist/plugin/file"
	"github.com/tanist/tanist/plugin/host"
	"github.com/tanist/tanist/postgres/private"
)

// TestMain makes the test binary the commands of the scripts: tanist itself, a controller, and a
// plugin.
func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){
		"tanist": main, "demo-controller": demoController, "rest": restClient, host.FileName("file"): func() { plugin.Serve(file.Plugin()) },
	})
}

// suite removes what the tests have built.
type suite struct{ *testing.M }

func (s suite) Run() int { return testbed.Main(s.M) }

// restClient is `rest SOCKET METHOD PATH [BODY]`: a request of the REST interface at a Unix socket. It
// prints the status and the body.
func restClient() {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", os.Args[1])
	}}}
	body := strings.Join(os.Args[4:], "")
	req, err := http.NewRequestWithContext(context.Background(), os.Args[2], "http://tanist"+os.Args[3], strings.NewReader(body))
	if err == nil && body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	var resp *http.Response
	if err == nil {
		resp, err = client.Do(req)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer resp.Body.Close()
	fmt.Println(resp.StatusCode)
	_, _ = io.Copy(os.Stdout, resp.Body)
}

// demoController is a controller that serves at its argument until it is told to end.
func demoController() {
	server := http.Server{
		Addr: os.Args[1], ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getenv("TANIST_NAME")) }),
	}
	if err := server.ListenAndServe(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestScripts runs the transcripts in testdata/script: what an operator types, what is answered,
// and the exit codes.
func TestScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := etcdtest.Start(t, 1)
	transcripts(t, "script", map[string]string{"ETCD": servers.Endpoints()[0]})
}

// TestScriptsOnConsul: the same on Consul.
func TestScriptsOnConsul(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := consultest.Start(t, consultest.Options{})
	transcripts(t, "consul", map[string]string{
		"CONSUL": servers.Servers[0].URL(), "CONSUL_HTTP_ADDR": servers.Servers[0].URL(), "CONSUL_BINARY": servers.Binary(),
	})
}

// TestScriptsOnPostgres: the same on PostgreSQL.
func TestScriptsOnPostgres(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() }) // the scripts run after this function
	transcripts(t, "postgres", map[string]string{"SOCKET": server.Dir, "PORT": strconv.Itoa(server.Port)})
}

// transcripts runs those of a directory. Variables are set for them.
func transcripts(t *testing.T, dir string, variables map[string]string) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", dir),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			for name, value := range variables {
				env.Setenv(name, value)
			}
			env.Setenv("SUDO_USER", "ana")
			env.Setenv("NO_COLOR", "1")
			// Every script has the store for itself, by its prefix.
			env.Setenv("PREFIX", fmt.Sprintf("/t%d", rand.Uint32()))
			names := []string{"A", "B", "C", "A_HTTP", "B_HTTP", "C_HTTP"}
			for i, address := range testbed.Addresses(t, len(names)) {
				env.Setenv(names[i], address)
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code":         scriptCode,
			"expand":       scriptExpand,
			"hold":         scriptHold,
			"put":          scriptPut,
			"until-stdout": scriptUntil,
			"etcd-space": func(ts *testscript.TestScript, _ bool, args []string) {
				if args[0] == "start" {
					ts.Setenv("ETCD", etcdtest.Start(t, 1).Endpoints()[0])
					return
				}
				ts.Check(alarm(t.Context(), ts.Getenv("ETCD"), args[0] == "raise"))
			},
			"etcd-with-users": func(ts *testscript.TestScript, _ bool, _ []string) {
				guarded := etcdtest.Start(t, 1)
				guarded.Ctl(t, "user", "add", "root:rootpw")
				guarded.Ctl(t, "user", "grant-role", "root", "root")
				guarded.Ctl(t, "role", "add", "reader")
				guarded.Ctl(t, "role", "grant-permission", "--prefix", "reader", "read", ts.Getenv("PREFIX")+"/")
				guarded.Ctl(t, "user", "add", "reader:readerpw")
				guarded.Ctl(t, "user", "grant-role", "reader", "reader")
				guarded.Ctl(t, "auth", "enable")
				ts.Setenv("ETCD", guarded.Endpoints()[0])
			},
		},
	})
}

// alarm raises the alarm of an etcd whose quota is used up, or ends it.
func alarm(ctx context.Context, endpoint string, raise bool) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
	if err != nil {
		return err
	}
	defer client.Close()
	status, err := client.Status(ctx, endpoint)
	if err != nil {
		return err
	}
	r := &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: status.Header.MemberId}
	if raise {
		r.Action = pb.AlarmRequest_ACTIVATE
	}
	_, err = pb.NewMaintenanceClient(client.ActiveConnection()).Alarm(ctx, r)
	return err
}

// scriptCode is `code N program args...`: it must end with that exit code.
func scriptCode(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: code N program args...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// scriptUntil is `until-stdout regexp program args...`: it runs the program until it prints that.
func scriptUntil(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile("(?m)" + args[0])
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		err := ts.Exec(args[1], args[2:]...)
		out := ts.ReadFile("stdout")
		if err == nil && want.MatchString(out) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("it does not come to print %s: %v", args[0], err)
		}
	}
}

// scriptExpand is `expand file...`: it puts variables into files.
func scriptExpand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		file := ts.MkAbs(name)
		ts.Check(os.WriteFile(file, []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
	}
}

// scriptHold is `hold address`: it listens there until the script ends.
func scriptHold(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", args[0])
	ts.Check(err)
	ts.Defer(func() { l.Close() })
}

// scriptPut is `put cluster key value`: it writes a record. The role key is bound to a lease, as it
// must be.
func scriptPut(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := etcd.Open(etcd.Config{Cluster: args[0], Prefix: ts.Getenv("PREFIX"), Endpoints: []string{ts.Getenv("ETCD")}, Log: zerolog.Nop()})
	ts.Check(err)
	defer s.Close()
	p := election.Put{Key: args[1], Value: []byte(strings.TrimSpace(args[2]))}
	if p.Key == "active" {
		p.Lease, err = s.Grant(ctx, time.Hour)
		ts.Check(err)
	}
	ts.Check(s.Put(ctx, p))
}

// TestBug: a panic is told as a bug, with 70.
func TestBug(t *testing.T) {
	root := newRoot()
	root.AddCommand(&cobra.Command{Use: "break", RunE: func(*cobra.Command, []string) error { panic("broken") }})
	root.SetArgs([]string{"break"})
	err := execute(t.Context(), root)
	if exit.Code(err) != exit.Bug || !strings.Contains(err.Error(), "this is a bug in tanist") || !strings.Contains(err.Error(), "broken") {
		t.Errorf("got %d, %v", exit.Code(err), err)
	}
}

// TestEveryCommandIsDocumented: a sentence, and the same words for the same flags.
func TestEveryCommandIsDocumented(t *testing.T) {
	var page bytes.Buffer
	root := newRoot()
	manPage(&page, root)
	words := map[string]string{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no sentence", c.CommandPath())
		}
		if c.Runnable() && c.Name() != "help" && c.Name() != "completion" && c.Parent() != nil && c.Parent().Name() != "completion" && c.Args == nil {
			t.Errorf("%s takes any arguments", c.CommandPath())
		}
		if c.Parent() != nil && c.Name() != "help" && !strings.Contains(page.String(), ".SS "+roff(c.CommandPath())) {
			t.Errorf("%s is not in the manual page", c.CommandPath())
		}
		for _, name := range []string{"output", "watch", "yes", "force", "cluster", "endpoints"} {
			f := c.Flags().Lookup(name)
			if f == nil || c.CommandPath() == "tanist events" || strings.HasPrefix(c.CommandPath(), "tanist repository") || strings.HasPrefix(c.CommandPath(), "tanist store") {
				continue
			}
			if before, ok := words[name]; ok && before != f.Shorthand+f.Usage {
				t.Errorf("%s: --%s is %q here, and %q elsewhere", c.CommandPath(), name, f.Shorthand+f.Usage, before)
			}
			words[name] = f.Shorthand + f.Usage
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if value, _ := pflag.UnquoteUsage(f); strings.Contains(value, " ") {
				t.Errorf("%s: --%s takes a value called %q: quote commands with ' in its usage", c.CommandPath(), f.Name, value)
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// TestEveryCommandHasItsFile: cmd_VERB.go, and nothing else is called like that.
func TestEveryCommandHasItsFile(t *testing.T) {
	want := map[string]bool{}
	for _, c := range newRoot().Commands() {
		if c.Name() != "help" && c.Name() != "completion" {
			want["cmd_"+strings.ReplaceAll(c.Name(), "-", "_")+".go"] = true
		}
	}
	files, err := filepath.Glob("cmd_*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") && !want[file] {
			t.Errorf("%s is not of a command", file)
		}
		delete(want, file)
	}
	for file := range want {
		t.Errorf("there is no %s", file)
	}
}
