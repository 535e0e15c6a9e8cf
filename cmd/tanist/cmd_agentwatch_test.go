package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
)

// TestAgentwatchAndProxyReapAsInit: as PID 1 of a container they reap all orphans: daemons that an
// agent forked, and the leftovers of hooks and validation commands.
func TestAgentwatchAndProxyReapAsInit(t *testing.T) {
	if os.Geteuid() != 0 || testing.Short() {
		t.Skip("needs root, to make a PID namespace")
	}
	servers := etcdtest.Start(t, 1)
	dir := t.TempDir()
	tanist := filepath.Join(dir, "tanist")
	if out, err := exec.Command("go", "build", "-o", tanist, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	head := fmt.Sprintf("cluster: jobs\nname: one\nlisten: {http: \"\"}\netcd: {endpoints: [%q], prefix: /t%d}\n", servers.Endpoints()[0], rand.Uint32())
	for kind, rest := range map[string]string{
		"agentwatch": "kind: agent\nretries: {count: 0}\nrun: {command: [sleep, \"600\"]}\n",
		"haproxy":    "kind: haproxy\nhaproxy: {config: \"\"}\nhooks: [{command: [\"true\"]}]\n",
	} {
		t.Run(kind, func(t *testing.T) {
			file := filepath.Join(dir, kind+".yml")
			if err := os.WriteFile(file, []byte(rest+head), 0o600); err != nil {
				t.Fatal(err)
			}
			// An orphan that is made before PID 1 becomes Tanist, and ends when it is told to: Tanist
			// must reap it.
			told := filepath.Join(dir, kind+".told")
			script := "(sh -c 'while ! test -e " + told + "; do sleep 0.05; done & exit'); exec " + tanist + " " + kind + " -c " + file
			cmd := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script)
			cmd.Stderr = t.Output()
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var init int
			defer func() {
				_ = syscall.Kill(init, syscall.SIGKILL)
				_ = cmd.Wait()
			}()
			// Its PID here, and the states of its children.
			children := func(pid int) (pids []int) {
				text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
				for f := range strings.FieldsSeq(string(text)) {
					var n int
					if _, err := fmt.Sscan(f, &n); err == nil {
						pids = append(pids, n)
					}
				}
				return pids
			}
			orphaned := false
			for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
				if own := children(cmd.Process.Pid); len(own) == 1 {
					init = own[0]
				}
				comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", init))
				became := strings.TrimSpace(string(comm)) == "tanist"
				left := children(init)
				if became && !orphaned && len(left) > 0 {
					orphaned = true
					if err := os.WriteFile(told, nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if became && orphaned && len(left) == 0 {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("PID 1 is Tanist: %v, had an orphan: %v, has children %v", became, orphaned, left)
				}
			}
		})
	}
}
