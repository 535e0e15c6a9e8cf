package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/internal/testbed"
	"github.com/tanist/tanist/postgres/private"
)

// TestHardeningWithEtcd and TestHardeningWithConsul run docs/security-hardening.md as it is written:
// see hardened.
func TestHardeningWithEtcd(t *testing.T) { hardened(t, "etcd") }

func TestHardeningWithConsul(t *testing.T) { hardened(t, "consul") }

// hardenedInside has the paths of the programs, in the process that runs in namespaces of its own.
const hardenedInside = "TANIST_HARDENED"

// hardened runs every block of the page in its order, as root, with directories, users, addresses
// and processes that only this test sees. Then the active controller is killed, and the passive one
// must take over.
func hardened(t *testing.T, store string) {
	needs(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, for users and namespaces")
	}
	if os.Getenv(hardenedInside) == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		// The shell is the first process of the namespace and reaps what nobody else does. Its end
		// is the end of all others.
		cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child",
			"sh", "-c", `"$@"; exit $?`, "sh", self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=10m")
		cmd.Env = append(os.Environ(), hardenedInside+"="+strings.Join(hardenedPrograms(t, store), " "))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
		return
	}
	s := newHardSite(t, store)
	page, err := os.ReadFile("../docs/security-hardening.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```([a-z]+) ?([^\n]*)\n(.*?)^```").FindAllStringSubmatch(string(page), -1)
	for _, b := range blocks {
		s.block(b[1], b[2], b[3])
	}
	if s.refused < 10 || s.ran < 8 || len(s.units) != 4 {
		t.Fatalf("%d blocks ran, %d were refused, %d units were started: the page has lost some", s.ran, s.refused, len(s.units))
	}
	s.privileges()
	s.failover()
}

// hardenedPrograms returns the paths of the programs that the hosts have.
func hardenedPrograms(t *testing.T, store string) []string {
	t.Helper()
	paths := []string{program(t, "tanist"), program(t, "tanist-lab")}
	if store == "etcd" {
		return append(paths, etcdtest.Binary(t), etcdtest.Ctl(t))
	}
	consul, err := testbed.Consul().Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return append(paths, consul)
}

// hardSite is the hosts of the page. They share files, and each has a network of its own, at a
// bridge.
type hardSite struct {
	t            *testing.T
	store        string
	dir          string // where the commands run
	database     *private.Server
	settings     map[string]string
	hba          []string
	choice       string // the lines of the files that select the store, if it is not etcd
	ran, refused int
	units        map[string]*testbed.Process
	following    string // the agent notes here whom it was started for
}

func newHardSite(t *testing.T, store string) *hardSite {
	s := &hardSite{t: t, store: store, units: map[string]*testbed.Process{}, following: "/var/lib/tanist/following"}
	s.dir = t.TempDir()
	s.must(`mount --make-rprivate /
for dir in /etc /usr/local/bin; do
  copy=$(mktemp -d); mount -t tmpfs tmpfs "$copy"; chmod 755 "$copy"; cp -a "$dir/." "$copy/"; mount --move "$copy" "$dir"
done
for dir in /var/lib /run /opt; do mount -t tmpfs -o mode=755 tmpfs "$dir"; done
install -d /etc/etcd /etc/consul.d /etc/systemd/system /opt/orders/bin
chmod 700 .`)
	s.must("install -m 755 " + os.Getenv(hardenedInside) + " /usr/local/bin/")
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	s.must(fmt.Sprintf("cp -r %s/deploy . && cp deploy/consul/agent.hcl /etc/consul.d/ && cp deploy/systemd/*.service /etc/systemd/system/", root))
	s.file("/opt/orders/bin/ordersd", "#!/bin/sh\n"+`exec /usr/local/bin/tanist-lab controller --name "$TANIST_NAME" --listen "$2" --record /dev/null`+"\n")
	s.file("/opt/orders/bin/agent", "#!/bin/sh\n"+`echo "$2" >`+s.following+"\nexec sleep infinity\n")
	s.must(`chmod 755 /opt/orders/bin/*
ip link set lo up
ip link add br0 type bridge
ip addr add 10.0.0.5/24 dev br0
ip link set br0 up
host() {
  ip netns add "$1"
  ip link add "$1" type veth peer name eth0 netns "$1"
  ip link set "$1" master br0 up
  ip -n "$1" addr add "$2/24" dev eth0
  ip -n "$1" link set eth0 up
  ip -n "$1" link set lo up
}
host ctl-a 10.0.0.11; host ctl-b 10.0.0.12; host agt-1 10.0.0.21; host proxy 10.0.0.100`)
	return s
}

// shell runs a script as the next lines of one shell: functions, exported variables and the mask of
// the scripts before are kept.
func (s *hardSite) shell(script, host string) (string, error) {
	const keep = "\n{ declare -f; export -p; umask -p; } >state"
	argv := []string{"bash", "-euc", "[ ! -e state ] || . ./state\n" + script + keep}
	if host != "" {
		argv = append([]string{"nsenter", "--net=/run/netns/" + host, "--"}, argv...)
	}
	cmd := exec.CommandContext(s.t.Context(), argv[0], argv[1:]...)
	cmd.Dir = s.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *hardSite) must(script string) {
	s.t.Helper()
	if out, err := s.shell(script, ""); err != nil {
		s.t.Fatalf("%v\n%s\n%s", err, script, out)
	}
}

func (s *hardSite) file(path, content string) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// denial is how a refusal is worded. Any other failure of a command shows nothing. A server that
// gets no certificate closes the connection, and curl reads the reason only if it is quick.
var denial = regexp.MustCompile(`(?i)permission denied|pg_hba\.conf (entry|rejects)|no password supplied|certificate required|bad certificate|curl: \((?:35|52|55|56)\)|403`)

// block does what one block of the page says.
func (s *hardSite) block(language, words, text string) {
	s.t.Helper()
	what, rest, _ := strings.Cut(words, " ")
	if what == "refused" {
		if other := strings.TrimPrefix(rest, "on "); other == rest && rest != "" && rest != s.store {
			return
		}
		_, host, _ := strings.Cut(rest, "on ")
		out, err := s.shell(text, host)
		if err == nil || !denial.MatchString(out) {
			s.t.Errorf("this is to be refused:\n%s%v\n%s", text, err, out)
		}
		s.refused++
		return
	}
	switch {
	case strings.HasPrefix(what, "/"):
		if s.choice != "" {
			text = regexp.MustCompile(`(?m)^store: etcd\netcd: .*\n`).ReplaceAllString(text, s.choice)
			text = strings.ReplaceAll(text, "NAME", strings.TrimSuffix(filepath.Base(what), ".yml"))
		}
		s.file(what, text)
		return
	case language == "yaml" && what == s.store:
		s.choice = text
		return
	case what == "postgresql.conf":
		s.settings = map[string]string{}
		for _, m := range regexp.MustCompile(`(?m)^(\w+) = '?(.*?)'?$`).FindAllStringSubmatch(text, -1) {
			s.settings[m[1]] = m[2]
		}
		return
	case what == "pg_hba.conf":
		s.hba = strings.Split(text, "\n")
		return
	case language != "sh", what == "etcd" && s.store != "etcd", what == "consul" && s.store != "consul", what == "yaml":
		return
	case what == "systemd":
		for _, m := range regexp.MustCompile(`(?m)^systemctl enable --now (\S+)$`).FindAllStringSubmatch(text, -1) {
			s.unit(m[1])
		}
		s.serving("ctl-a")
		s.ready("ctl-b")
		return
	case words == "etcd":
		s.server("etcd", "etcd", "--config-file", "/etc/etcd/etcd.yml")
	case words == "consul":
		s.server("consul", "consul", "agent", "-config-dir", "/etc/consul.d")
	case what == "database":
		s.startDatabase()
	}
	s.must(text)
	s.ran++
	if what == "database" {
		s.must(`PGDATABASE=orders runuser -u postgres -- psql -q -v ON_ERROR_STOP=1 -c 'SET ROLE orders_owner' -c 'CREATE TABLE work (n int)' \
-c 'RESET ROLE' -c 'CREATE SCHEMA lab AUTHORIZATION orders_owner' -c 'SET ROLE orders_owner' \
-c 'CREATE TABLE lab.work (n bigserial PRIMARY KEY, id text NOT NULL UNIQUE, term bigint NOT NULL, controller text NOT NULL)'`)
	}
}

// server starts a store as its user, and returns when it answers.
func (s *hardSite) server(user string, argv ...string) {
	s.t.Helper()
	cmd := exec.Command("setpriv", append([]string{"--reuid=" + user, "--regid=" + user, "--clear-groups", "--bounding-set=-all", "--no-new-privs", "--"}, argv...)...)
	cmd.Dir = "/"
	p := testbed.Start(s.t, cmd)
	pattern := "ready to serve client requests"
	if user == "consul" {
		pattern = "member joined, marking health alive" // after which ACLs can be bootstrapped
	}
	p.Await(pattern, patience)
}

// startDatabase starts PostgreSQL with the page's files. The test itself gets in over the socket.
func (s *hardSite) startDatabase() {
	s.t.Helper()
	port, err := strconv.Atoi(s.settings["port"])
	if err != nil || s.settings["listen_addresses"] == "" || len(s.hba) < 5 {
		s.t.Fatalf("postgresql.conf and pg_hba.conf of the page were not understood: %v %v", s.settings, s.hba)
	}
	listen := s.settings["listen_addresses"]
	delete(s.settings, "listen_addresses")
	delete(s.settings, "port")
	s.database, err = private.Start(s.t.Context(), private.Options{
		BinDir: os.Getenv("TANIST_PG_BINDIR"), Listen: listen, Port: port, Settings: s.settings,
		HBA: append([]string{"local postgres postgres trust"}, s.hba...),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = s.database.Stop() })
	s.must("export PGHOST=" + s.database.Dir)
}

// unit starts a unit as systemd would: with the user, the directories and the capabilities that the
// unit and its drop-in name.
func (s *hardSite) unit(name string) {
	s.t.Helper()
	name, instance, templated := strings.Cut(name, "@")
	host := instance
	file := "/etc/systemd/system/" + name
	if templated {
		file += "@"
	} else {
		host = "proxy"
	}
	file += ".service"
	set := map[string]string{}
	for _, path := range []string{file, file + ".d/user.conf"} {
		b, err := os.ReadFile(path)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^(\w+)=(.*)$`).FindAllStringSubmatch(string(b), -1) {
			set[m[1]] = strings.ReplaceAll(m[2], "%i", instance)
		}
	}
	caps := func(key string) string {
		var list strings.Builder
		list.WriteString("-all")
		for c := range strings.FieldsSeq(set[key]) {
			list.WriteString(",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_")))
		}
		return list.String()
	}
	user := set["User"]
	for key, parent := range map[string]string{"RuntimeDirectory": "/run/", "StateDirectory": "/var/lib/"} {
		if set[key] != "" {
			s.must(fmt.Sprintf("install -d -m 755 -o %s -g %s %s", user, user, parent+set[key]))
		}
	}
	argv := []string{
		"--net=/run/netns/" + host, "--", "setpriv", "--reuid=" + user, "--regid=" + user, "--init-groups",
		"--bounding-set=" + caps("CapabilityBoundingSet"), "--inh-caps=" + caps("AmbientCapabilities"), "--ambient-caps=" + caps("AmbientCapabilities"),
	}
	if set["NoNewPrivileges"] == "yes" {
		argv = append(argv, "--no-new-privs")
	}
	cmd := exec.Command("nsenter", append(append(argv, "--"), strings.Fields(set["ExecStart"])...)...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	s.units[host] = testbed.Start(s.t, cmd)
	if host == "ctl-a" { // it is to be the first, so the next one is not started before
		s.units[host].Await(`"message":"acquired the lease"`, patience)
	}
}

// await waits until a condition holds.
func (s *hardSite) await(what string, holds func() bool) {
	s.t.Helper()
	for begun := time.Now(); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > patience {
			s.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// serving waits until users reach a controller through the proxy, its work is confirmed, and the
// agent follows it.
func (s *hardSite) serving(name string) {
	s.t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	s.await(name+" serves", func() bool {
		r, err := client.Post("http://10.0.0.100:8080/work", "application/x-www-form-urlencoded", strings.NewReader("id="+name))
		if err != nil {
			return false
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return err == nil && r.StatusCode == http.StatusOK && bytes.Contains(b, []byte(`"name":"`+name+`"`))
	})
	address := map[string]string{"ctl-a": "10.0.0.11", "ctl-b": "10.0.0.12"}[name]
	s.await("the agent follows "+name, func() bool {
		b, err := os.ReadFile(s.following)
		return err == nil && strings.TrimSpace(string(b)) == "http://"+address+":8080"
	})
}

// ready waits until a sidecar says that it could take over.
func (s *hardSite) ready(name string) {
	s.t.Helper()
	s.await(name+" is ready", func() bool {
		_, err := s.shell("curl -sf http://127.0.0.1:8710/passive", name)
		return err == nil
	})
}

// tree returns the processes that descend from one, with it.
func tree(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		for _, path := range must(filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))) {
			b, _ := os.ReadFile(path) // it may have ended
			for field := range strings.FieldsSeq(string(b)) {
				all = append(all, must(strconv.Atoi(field)))
			}
		}
	}
	return all
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// privileges checks who runs as whom and with what. Nobody is root, and only sidecars and their
// guards have a capability.
func (s *hardSite) privileges() {
	s.t.Helper()
	users := map[string]string{"ctl-a": "orders", "ctl-b": "orders", "agt-1": "orders-agent", "proxy": "orders-proxy"}
	programs := 0
	for host, unit := range s.units {
		uid := strings.TrimSpace(string(must(exec.Command("id", "-u", users[host]).Output())))
		for _, pid := range tree(unit.Process.Pid) {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				continue // a check that has ended
			}
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil {
				continue // it has ended since
			}
			command := string(bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
			field := func(name string) string {
				return regexp.MustCompile(`(?m)^` + name + `:\s+(\S+)`).FindStringSubmatch(string(b))[1]
			}
			program := !strings.Contains(command, "tanist sidecar") && !strings.HasPrefix(command, "tanist-guard") && !strings.Contains(command, "tanist guard")
			if strings.HasPrefix(host, "ctl") && !program {
				// CAP_IPC_LOCK is 14, CAP_SYS_NICE is 23.
				if bound := field("CapBnd"); bound != "0000000000804000" {
					s.t.Errorf("%s may have %s", command, bound)
				}
			} else {
				programs++
				if field("CapEff") != "0000000000000000" || field("CapAmb") != "0000000000000000" {
					s.t.Errorf("%s has capabilities:\n%s", command, b)
				}
			}
			if field("Uid") != uid {
				s.t.Errorf("%s runs as %s, want %s (%s)", command, field("Uid"), uid, users[host])
			}
			if host != "proxy" && field("NoNewPrivs") != "1" {
				s.t.Errorf("%s may gain privileges", command)
			}
		}
	}
	if programs < 5 {
		s.t.Errorf("found %d programs without capabilities, want the controller, agentwatch, agent, haproxy driver and HAProxy", programs)
	}
	if text := s.units["ctl-a"].Text(); !strings.Contains(text, "SCHED_RR") {
		s.t.Error("the guard did not get the priority that CAP_SYS_NICE is for")
	}
}

// failover kills the active controller. The other takes over, and the secret of the old term is
// void.
func (s *hardSite) failover() {
	s.t.Helper()
	old := must(os.ReadFile("/run/tanist/ctl-a.pgpass"))
	pids := tree(s.units["ctl-a"].Process.Pid)
	i := slices.IndexFunc(pids, func(pid int) bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return bytes.HasPrefix(b, []byte("/usr/local/bin/tanist-lab\x00controller"))
	})
	if i < 0 {
		s.t.Fatal("ctl-a has no controller")
	}
	if err := syscall.Kill(pids[i], syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	s.serving("ctl-b")
	s.ready("ctl-a")
	s.file(filepath.Join(s.dir, "old"), string(old))
	out, err := s.shell(`chmod 600 old; PGPASSFILE=old psql -w -c 'SELECT 1' "host=10.0.0.5 dbname=orders user=orders_a sslmode=require"`, "ctl-a")
	if err == nil || !strings.Contains(out, "is not permitted to log in") && !strings.Contains(out, "password authentication failed") {
		s.t.Errorf("the secret of the old term is not refused: %v\n%s", err, out)
	}
	if conn, err := net.DialTimeout("tcp", "10.0.0.11:8710", time.Second); err == nil {
		conn.Close()
		s.t.Error("other hosts reach a sidecar's REST interface")
	}
}
