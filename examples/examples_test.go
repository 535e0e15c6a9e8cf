package examples

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/internal/testbed"
)

// TestCronRunsOnceClusterWide: of three hosts that start the job of a tick within half a second, one
// runs it.
func TestCronRunsOnceClusterWide(t *testing.T) {
	t.Parallel()
	needs(t, "dash", "sh")
	s := readme(t, "cron")
	runs, err := os.ReadFile(filepath.Join(s.dir, "runs"))
	if err != nil || strings.Count(string(runs), "\n") != 1 || !strings.HasSuffix(s.output, "runs: 1\n") {
		t.Errorf("the job ran as follows (%v):\n%s", err, runs)
	}
}

// TestCeleryBeatTicksOnce: over the death of the active host, no tick is sent twice, and ticks go on.
func TestCeleryBeatTicksOnce(t *testing.T) {
	long(t)
	needs(t, "celery python3-redis redis-server", "celery", "redis-server")
	s := readme(t, "celery-beat")
	if !strings.Contains(s.output, "twice within half a second: 0\n") {
		t.Errorf("it prints %q", s.output)
	}
	ticks := numbers(t, filepath.Join(s.dir, "ticks"))
	if len(ticks) < 22 {
		t.Errorf("%d ticks in 30 s", len(ticks))
	}
	gap := 0.0
	for i := range len(ticks) - 1 {
		gap = max(gap, ticks[i+1]-ticks[i])
	}
	t.Logf("%d ticks, the longest gap is %.2f s", len(ticks), gap)
	if gap > 10 {
		t.Errorf("the longest gap between two ticks is %.2f s", gap)
	}
}

// TestCeleryBeatOverFiftyFailovers: the active host dies fifty times, and no tick is sent twice.
func TestCeleryBeatOverFiftyFailovers(t *testing.T) {
	long(t)
	needs(t, "celery python3-redis redis-server", "celery", "redis-server")
	dir, endpoints := testbed.Dir(t), "ETCDCTL_ENDPOINTS="+strings.Join(etcdtest.Start(t, 1).Endpoints(), ",")
	_, port, _ := strings.Cut(testbed.Address(t), ":")
	if err := os.CopyFS(dir, os.DirFS("celery-beat")); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) *testbed.Process {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), endpoints, "BROKER=redis://127.0.0.1:"+port+"/0", "PATH=/usr/bin:"+os.Getenv("PATH"))
		return testbed.Start(t, cmd)
	}
	run("redis-server", "--port", port, "--save", "").Await("Ready to accept connections", time.Minute)
	run("celery", "-A", "tasks", "worker", "--concurrency", "1")
	tanist := testbed.Binary(t, "tanist")
	beat := func(name string) *testbed.Process {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		return run(tanist, "run", "-C", "celery-beat", "--name", name, "--profile", "fast", "--",
			"sh", "-c", `rm -f "$0"/schedule*; exec celery -A tasks beat --pidfile= -s "$0/schedule"`, name)
	}
	hosts := map[string]*testbed.Process{"host-1": beat("host-1"), "host-2": beat("host-2")}
	ticks := func() []float64 { return numbers(t, filepath.Join(dir, "ticks")) }
	more := func(n int) {
		t.Helper()
		for begun, have := time.Now(), len(ticks()); len(ticks()) < have+n; time.Sleep(20 * time.Millisecond) {
			if time.Since(begun) > time.Minute {
				t.Fatalf("%d ticks, and no more within a minute", have)
			}
		}
	}
	more(3)
	for range 50 {
		out, err := exec.CommandContext(t.Context(), tanist, "is-active", "-C", "celery-beat", "--endpoints", strings.TrimPrefix(endpoints, "ETCDCTL_ENDPOINTS=")).Output()
		if err != nil {
			t.Fatalf("nobody is active: %v", err)
		}
		active := strings.TrimSpace(string(out))
		hosts[active].Signal(syscall.SIGKILL)
		<-hosts[active].Ended()
		hosts[active] = beat(active)
		more(3)
	}
	all, twice, gap := ticks(), 0, 0.0
	for i := range len(all) - 1 {
		apart := all[i+1] - all[i]
		gap = max(gap, apart)
		if apart < 0.5 {
			twice++
		}
	}
	t.Logf("50 failovers: %d ticks, %d twice, the longest gap is %.2f s", len(all), twice, gap)
	if twice > 0 {
		t.Errorf("%d ticks were sent twice", twice)
	}
}

// TestMosquittoMoves: a client reaches the broker through HAProxy before and after a planned move.
func TestMosquittoMoves(t *testing.T) {
	long(t)
	needs(t, "mosquitto mosquitto-clients haproxy", "mosquitto", "mosquitto_pub", "mosquitto_sub", "haproxy")
	if out := readme(t, "mosquitto").output; strings.Count(out, "● active") != 2 {
		t.Errorf("it prints %q", out)
	}
}

// numbers reads a file with a number per line, sorted. There are none in a file that does not exist.
func numbers(t *testing.T, file string) []float64 {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var all []float64
	for f := range strings.FieldsSeq(string(b)) {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	slices.Sort(all)
	return all
}
