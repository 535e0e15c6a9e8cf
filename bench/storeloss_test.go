package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres/private"
)

// repository prepares a private PostgreSQL for the hosts of a site, and returns the YAML of each
// host.
func (s *site) repository() []string {
	s.t.Helper()
	server, err := private.Start(s.t.Context(), private.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			s.t.Error(err)
		}
	})
	write := func(name, text string) string {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
		return path
	}
	init := []string{s.binary, "repository", "init", "--cluster", cluster, "--apply", "--dsn-file", write("super.dsn", server.SuperDSN("postgres"))}
	var yaml []string
	_, port, _ := strings.Cut(s.forward(fmt.Sprintf("%s:%d", server.Host, server.Port)), ":")
	for _, h := range s.hosts {
		login := "sidecar_" + string(rune('a'+h.n-1))
		role := "program_" + string(rune('a'+h.n-1))
		init = append(init, "--controller", strings.Join([]string{h.name, role, login, write(login, "a password of "+login)}, ":"))
		dsn := fmt.Sprintf("host=%s port=%s dbname=postgres user=%s password='a password of %s'", gateway(), port, login, login)
		yaml = append(yaml, fmt.Sprintf("repository: {dsn_file: %s, role: %s, secret: {env: PGPASSWORD}}", write(login+".dsn", dsn), role))
	}
	s.run(init...)
	return yaml
}

// secret makes the hosts' shared secret and returns its YAML.
func (s *site) secret() string {
	s.t.Helper()
	path := filepath.Join(s.dir, "failsafe")
	if err := os.WriteFile(path, []byte("0123456789abcdef0123456789abcdef"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return "failsafe: {secret_file: " + path + "}"
}

// listed waits until a passive is on the list of those who may take over without the store.
func (s *site) listed(passive *host) {
	s.t.Helper()
	list := regexp.MustCompile(` heirs=\S*\b` + passive.name + `\b`)
	s.await(passive.name+" is listed", func() bool {
		return list.MatchString(s.members.Ctl(s.t, "get", "/tanist/"+cluster+"/"+election.TermKey))
	})
}

// TestWholeStoreStopped: the whole store is down for a while. With stop, the active has stopped by
// its deadline. With failsafe and keep, no request is lost.
func TestWholeStoreStopped(t *testing.T) {
	away := time.Duration(times(12, 60)) * time.Second
	for _, policy := range []election.StoreLoss{election.StoreLossStop, election.StoreLossFailsafe, election.StoreLossKeep} {
		t.Run(string(policy), func(t *testing.T) {
			s := newSite(t, 2, "")
			extra := []string{"on_store_loss: " + string(policy)}
			switch policy {
			case election.StoreLossFailsafe:
				extra = append(extra, s.secret())
			case election.StoreLossKeep:
				yaml := s.repository()
				for i, h := range s.hosts {
					h.own = yaml[i]
				}
			}
			s.begin(extra...)
			active, passive := s.roles()
			if policy == election.StoreLossFailsafe {
				s.listed(passive)
			}
			l := s.load(active.url())
			for i := range s.members.Len() {
				s.members.Kill(t, i)
			}
			down := election.BootClock()
			time.Sleep(away)
			asked, failed := l.end()
			if policy != election.StoreLossStop {
				s.await("the active serves", func() bool { is, _ := active.serves(); return is })
			}
			lives := readLives(t, active.record)
			last := lives[len(lives)-1].to
			if policy == election.StoreLossStop {
				timing, err := election.Profile(election.ProfileDefault)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("stopped %v after the store", last.Sub(down).Round(time.Millisecond))
				if last.Sub(down) > timing.Validity || len(lives) != 1 {
					t.Errorf("the active ran for %v without the store (validity %v), %d lives", last.Sub(down), timing.Validity, len(lives))
				}
			} else {
				t.Logf("%d requests in %v without the store, %d failed", asked, away, failed)
				// A busy machine asks less often.
				if failed > 0 || asked < int(away/time.Second) || len(lives) != 1 {
					t.Errorf("the active did not keep serving: %d of %d requests failed, %d lives", failed, asked, len(lives))
				}
			}
			if n := len(readLives(t, passive.record)); n != 0 {
				t.Errorf("the passive served %d times", n)
			}
			for i := range s.members.Len() {
				s.members.Restart(t, i)
			}
			s.members.WaitHealthy(t)
			s.roles()
			s.noOverlap()
		})
	}
}

// TestFailsafeWithAPassiveAway: the store is down and a passive does not answer. The active stops
// by its deadline.
func TestFailsafeWithAPassiveAway(t *testing.T) {
	s := newSite(t, 2, "")
	s.begin("on_store_loss: failsafe", s.secret())
	active, passive := s.roles()
	s.listed(passive)
	passive.cut()
	down := election.BootClock()
	for i := range s.members.Len() {
		s.members.Kill(t, i)
	}
	s.await("the active has stopped", func() bool {
		lives := readLives(t, active.record)
		return election.BootClock().Sub(lives[len(lives)-1].to) > time.Second
	})
	lives := readLives(t, active.record)
	t.Logf("stopped %v after the store", lives[len(lives)-1].to.Sub(down).Round(time.Millisecond))
	timing, err := election.Profile(election.ProfileDefault)
	if err != nil {
		t.Fatal(err)
	}
	if d := lives[len(lives)-1].to.Sub(down); d > timing.Validity {
		t.Errorf("the active ran for %v without the store (validity %v)", d, timing.Validity)
	}
	s.heal()
	for i := range s.members.Len() {
		s.members.Restart(t, i)
	}
	s.members.WaitHealthy(t)
	s.roles()
	s.noOverlap()
}
