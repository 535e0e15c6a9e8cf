package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres/private"
)

// newPostgresSite makes hosts whose store is one PostgreSQL server that keeps what it confirms.
func newPostgresSite(t *testing.T, hosts int, extra string) *site {
	t.Helper()
	s := newHosts(t, hosts, extra)
	server, err := private.Start(t.Context(), private.Options{Durable: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	write := func(name, text string) string {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secret := write("store.password", "s3cret")
	s.run(s.binary, "store", "init", "--cluster", cluster, "--login", "tanist_bench:"+secret, "--apply", "--dsn-file", write("super.dsn", server.SuperDSN("postgres")))
	s.where = fmt.Sprintf("store: postgres\npostgres: {dsn: \"postgres://tanist_bench@%s/postgres?sslmode=disable\", password_file: %s}",
		s.forward(fmt.Sprintf("%s:%d", server.Host, server.Port)), secret)
	return s
}

// program is the process of the host's controller.
func (h *host) program() int {
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	for _, path := range dirs {
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(b, []byte("\x00controller\x00")) || !bytes.HasSuffix(b, []byte("\x00"+h.record+"\x00")) {
			continue
		}
		if exe, err := os.Readlink(filepath.Join(filepath.Dir(path), "exe")); err == nil && exe == h.self() {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	h.t.Fatalf("%s has no controller", h.name)
	return 0
}

func (h *host) self() string {
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	return self
}

// TestStoresSideBySide: the same faults on etcd, with three members, and on PostgreSQL, with one
// durable server, in one run. The short form has PostgreSQL alone.
func TestStoresSideBySide(t *testing.T) {
	for _, store := range []struct {
		name string
		site func(*testing.T, int, string) *site
	}{{"etcd", newSite}, {"postgres", newPostgresSite}} {
		if store.name == "etcd" && !long() {
			continue
		}
		for _, profile := range []string{"fast", "default"} {
			if profile == "default" && !long() {
				continue
			}
			t.Run(store.name+"/"+profile, func(t *testing.T) {
				s := store.site(t, 2, "lease: {profile: "+profile+"}")
				s.begin()
				what := store.name + ", " + profile + ": "
				killed := s.took(times(2, 20), func(active, _ *host) {
					if err := syscall.Kill(active.program(), syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
				})
				moved := s.moves(times(2, 20))
				crashes := times(2, 20)
				if profile == "default" {
					crashes = 5 // ten seconds each
				}
				crashed := s.took(crashes, func(active, _ *host) { active.cut(); active.crash() })
				s.noOverlap()
				stats(t, what+"controller killed → the other serves", killed)
				stats(t, what+"planned move: last answer of the old active → first answer of the new one", moved)
				stats(t, what+"host crash → the other serves", crashed)
			})
		}
	}
}

// took plays a fault of the active, and returns how long it took until the other served.
func (s *site) took(n int, fault func(active, passive *host)) (all []time.Duration) {
	for range n {
		active, passive := s.roles()
		begun := election.BootClock()
		fault(active, passive)
		var from election.Instant
		s.await("the other serves", func() bool {
			is, since := passive.serves()
			from = since
			return is && since > begun // not what it recorded before it was killed itself
		})
		all = append(all, from.Sub(begun))
		s.heal()
		if active.cmd == nil {
			active.restart()
		}
	}
	s.roles()
	return all
}

// moves returns how long nobody served in each of n planned moves.
func (s *site) moves(n int) (gaps []time.Duration) {
	for range n {
		_, passive := s.roles()
		before, served := readLives(s.t, s.other(passive).record), len(readLives(s.t, passive.record))
		s.await("the store has the passive as ready", func() bool { // its own word may come earlier
			return exec.Command(s.binary, "switchover", "-c", passive.config, "--to", passive.name, "--dry-run").Run() == nil
		})
		s.run(s.binary, "switchover", "-c", passive.config, "--to", passive.name, "-y")
		var lives []life
		s.await("the new controller has recorded that it serves", func() bool {
			lives = readLives(s.t, passive.record)
			return len(lives) > served
		})
		after := readLives(s.t, s.other(passive).record)
		gaps = append(gaps, lives[len(lives)-1].from.Sub(after[len(before)-1].to))
	}
	return gaps
}
