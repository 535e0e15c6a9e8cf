package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/cmd/tanist/exit"
)

// TestVirtualIPWithConsulPolicies: under default deny, policy-vip.hcl is what tanist vip needs.
// Without any rights it ends; with those of an agentwatch it holds the addresses, but cannot write
// its status.
func TestVirtualIPWithConsulPolicies(t *testing.T) {
	s := newVIPSite(t)
	c := consultest.Start(t, consultest.Options{ACL: true})
	s.store = "http://" + s.forward(s.a.lan(), "10.66.0.254:0", c.Servers[0].HTTP())
	granted := func(kind string) string {
		t.Helper()
		rules, err := os.ReadFile("../deploy/consul/policy-" + kind + ".hcl")
		if err != nil {
			t.Fatal(err)
		}
		token, err := c.Grant(t.Context(), kind, strings.ReplaceAll(string(rules), "orders", "vip"))
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	s.tokens = map[string]string{"controller": granted("controller")}
	s.a.sidecarWith("default", "")
	s.client.shows(`"serving"`, append([]string{"list", "-o", "json"}, s.cli()...)...)
	held := func() bool { return s.a.has(vip4) && s.a.has(vip6) }
	logged := func(text string) func() bool {
		return func() bool {
			b, _ := os.ReadFile(filepath.Join(s.dir, s.a.name+".log"))
			return strings.Contains(string(b), text)
		}
	}

	ctx, cancel := context.WithTimeout(t.Context(), vipPatience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", s.a.space}, s.a.followerCommand()...)...).CombinedOutput()
	if ended := (*exec.ExitError)(nil); !errors.As(err, &ended) || ended.ExitCode() != exit.Denied || held() {
		t.Errorf("without a token: %v\n%s", err, out)
	}

	s.tokens["vip"] = granted("agent")
	s.a.follower()
	s.await(vipPatience, "the host has the addresses", held)
	s.await(vipPatience, "the status is refused", logged("cannot write the status to the store"))
	if seen := s.client.tanist(append([]string{"list", "-o", "json"}, s.cli()...)...); strings.Contains(seen, "vip-1") {
		t.Errorf("the status is shown:\n%s", seen)
	}
	s.a.signal(unix.SIGTERM, "tanist vip")
	s.await(vipPatience, "the addresses are removed", func() bool { return !s.a.has(vip4) && !s.a.has(vip6) && len(s.a.processes("tanist vip")) == 0 })

	s.tokens["vip"] = granted("vip")
	s.a.follower()
	s.await(vipPatience, "the host has the addresses", held)
	s.showsFollower(s.a)
	time.Sleep(time.Second) // two more reads
	if !held() {
		t.Error("the addresses were not kept")
	}
}
