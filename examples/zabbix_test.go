package examples

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/postgres/private"
)

// postgres starts a private PostgreSQL, and returns the variables of its superuser.
func postgres(t *testing.T) []string {
	t.Helper()
	server, err := private.Start(t.Context(), private.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	password, err := os.ReadFile(filepath.Join(server.Dir, "superuser"))
	if err != nil {
		t.Fatal(err)
	}
	return []string{"PGHOST=" + server.Host, "PGPORT=" + strconv.Itoa(server.Port), "PGUSER=" + private.Superuser, "PGPASSWORD=" + string(password)}
}

// needsZabbix skips a test if Zabbix is not installed.
func needsZabbix(t *testing.T) {
	t.Helper()
	long(t)
	needs(t, "zabbix-server-pgsql zabbix-agent postgresql", "zabbix_server", "zabbix_agentd", "zabbix_sender", "psql", "createdb")
}

// TestZabbixMoves: the values of an agent's active check keep arriving after a planned move.
func TestZabbixMoves(t *testing.T) {
	needsZabbix(t)
	if out := readme(t, "zabbix", postgres(t)...).output; strings.Count(out, "● active") != 1 || !strings.Contains(out, "switchover") {
		t.Errorf("it prints %q", out)
	}
}

// faults is how often the active host dies in the comparison.
var faults = flag.Int("faults", 20, "how often the active host dies under Tanist, and under Zabbix's own HA mode")

// TestZabbixBesideItsOwnHA: the active host dies, again and again, under Tanist and under Zabbix's own HA
// mode with its smallest failover delay; the longest time in which no value of an active check arrived.
// The servers share one PostgreSQL, in two databases, and one machine.
func TestZabbixBesideItsOwnHA(t *testing.T) {
	needsZabbix(t)
	s := readme(t, "zabbix", postgres(t)...)
	ours, lost := zabbixGaps(t, s, "zabbix", func() string {
		return strings.TrimPrefix(s.run(t, "bash", "-c", "tanist is-active -C zabbix 2>/dev/null || true"), "ctl-")
	}, func(host string) {
		killTree(t, s.dir, "ctl-"+host+".yml", "run-"+host+"/zabbix_server.conf")
	}, func(host string) {
		s.start(t, "tanist", "sidecar", "-c", "ctl-"+host+".yml")
	})

	s.run(t, "bash", "-c", `set -e; createdb zabbix_ha; export PGDATABASE=zabbix_ha
for f in schema images data; do zcat /usr/share/zabbix-server-pgsql/$f.sql.gz | psql -q -v ON_ERROR_STOP=1 >>load.log; done
psql -q -v ON_ERROR_STOP=1 -f items.sql
for x in c d; do
  port=$([ $x = c ] && echo 20053 || echo 20054)
  install -d -m 777 run-$x
  printf '%s\n' DBHost=$PGHOST DBPort=$PGPORT DBName=zabbix_ha DBUser=$PGUSER DBPassword=$PGPASSWORD ListenPort=$port ListenIP=127.0.0.1 \
    PidFile=$PWD/run-$x/pid SocketDir=$PWD/run-$x LogType=console CacheUpdateFrequency=10 HANodeName=$x NodeAddress=127.0.0.1:$port >run-$x/zabbix_server.conf
done
printf '%s\n' "ServerActive=127.0.0.1:20053;127.0.0.1:20054" Hostname=agt-1 StartAgents=0 BufferSend=1 LogType=console PidFile=$PWD/run-c/agent.pid >agent-ha.conf`)
	node := func(host string) {
		s.start(t, "zabbix_server", "-f", "-c", filepath.Join(s.dir, "run-"+host, "zabbix_server.conf"))
	}
	node("c")
	node("d")
	s.start(t, "zabbix_agentd", "-f", "-c", filepath.Join(s.dir, "agent-ha.conf"))
	active := func() string {
		return s.run(t, "psql", "-At", "-d", "zabbix_ha", "-c", "SELECT name FROM ha_node WHERE status = 3")
	}
	eventually(t, "a node of Zabbix's own HA mode to be active", func() bool { return active() != "" })
	s.run(t, "zabbix_server", "-c", filepath.Join(s.dir, "run-"+active(), "zabbix_server.conf"), "-R", "ha_set_failover_delay=10s")
	own, ownLost := zabbixGaps(t, s, "zabbix_ha", active, func(host string) {
		killTree(t, s.dir, "run-"+host+"/zabbix_server.conf")
	}, node)
	t.Logf("no value arrived for, %d deaths of the active host each:\n  under Tanist, profile default: median %.1f s, worst %.1f s; %d values are missing\n  Zabbix's own HA mode, delay 10 s: median %.1f s, worst %.1f s; %d values are missing",
		*faults, median(ours), slices.Max(ours), lost, median(own), slices.Max(own), ownLost)
}

func median(all []float64) float64 { return slices.Sorted(slices.Values(all))[(len(all)-1)/2] }

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for begun := time.Now(); !holds(); time.Sleep(200 * time.Millisecond) {
		if time.Since(begun) > 2*time.Minute {
			t.Fatalf("waited two minutes for %s", what)
		}
	}
}

// zabbixGaps kills the active host again and again, starts it again when another is active, and returns the longest time in which no value
// reached the database around each death, and how many values of an item that has one per second are
// missing in all.
func zabbixGaps(t *testing.T, s session, database string, active func() string, kill, start func(host string)) (gaps []float64, lost int) {
	t.Helper()
	clocks := func() []int {
		text := s.run(t, "psql", "-At", "-d", database, "-c", "SELECT clock FROM history_uint WHERE itemid = 90002 ORDER BY clock")
		var all []int
		for f := range strings.FieldsSeq(text) {
			v, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, v)
		}
		return all
	}
	// arrive waits until n values have arrived, and returns the longest time in which none did.
	arrive := func(n int) (gap float64) {
		t.Helper()
		have := len(clocks())
		last := time.Now()
		eventually(t, "values", func() bool {
			if now := len(clocks()); now > have {
				gap, last = max(gap, time.Since(last).Seconds()), time.Now()
				n, have = n-(now-have), now
			}
			return n <= 0
		})
		return gap
	}
	arrive(5)
	first := len(clocks())
	for range *faults {
		arrive(3)
		host := active()
		kill(host)
		gap := arrive(5)
		eventually(t, "another host to be active", func() bool { a := active(); return a != "" && a != host })
		t.Logf("%s: %s died; no value arrived for %.1f s", database, host, gap)
		gaps = append(gaps, gap)
		start(host)
		arrive(10) // it is a passive by then
	}
	all := clocks()[first:]
	return gaps, all[len(all)-1] - all[0] + 1 - len(all)
}

// killTree kills, at once, every process that has one of the texts in its command line and runs in the
// directory or names it, and everything below it.
func killTree(t *testing.T, dir string, texts ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ps", "-eo", "pid=,ppid=,args=").Output()
	if err != nil {
		t.Fatal(err)
	}
	parents, doomed := map[int]int{}, map[int]bool{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		pid, _ := strconv.Atoi(f[0])
		parents[pid], _ = strconv.Atoi(f[1])
		cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		for _, text := range texts {
			if strings.Contains(line, text) && (cwd == dir || strings.Contains(line, dir)) {
				doomed[pid] = true
			}
		}
	}
	for range 10 { // a process tree is less deep
		for pid, parent := range parents {
			if doomed[parent] {
				doomed[pid] = true
			}
		}
	}
	if len(doomed) == 0 {
		t.Fatalf("found no process with %q", texts)
	}
	for pid := range doomed {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}
