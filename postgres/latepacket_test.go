package postgres

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/postgres/private"
)

// lateWriter is the program of an old term, in a network namespace: it stops before its COMMIT
// until it is told to continue.
func lateWriter(dsn string) int {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	if err == nil {
		_, err = conn.Exec(ctx, "BEGIN")
	}
	if err == nil {
		err = insert(ctx, conn, 1, "late")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("in transaction")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return 1
	}
	if _, err := conn.PgConn().Conn().Write([]byte("Q\x00\x00\x00\x0bCOMMIT\x00")); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("sent") // into the kernel's buffer
	select {}
}

// island is a network namespace with a single link.
type island struct {
	t    *testing.T
	name string
	here string // our end of the cable
	ip   string // our address on it
}

func newIsland(t *testing.T) *island {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("ip is not installed (package iproute2)")
	}
	n := os.Getpid() % 16000
	i := &island{t: t, name: fmt.Sprintf("tanist-%d", n), here: fmt.Sprintf("tnst%d", n), ip: fmt.Sprintf("10.213.%d.%d", n/64, n%64*4+1)}
	there := fmt.Sprintf("10.213.%d.%d", n/64, n%64*4+2)
	if out, err := exec.Command("ip", "netns", "add", i.name).CombinedOutput(); err != nil {
		t.Skipf("network namespaces can't be made here: %s", out)
	}
	t.Cleanup(func() { i.run("ip", "netns", "del", i.name) })
	i.run("ip", "link", "add", i.here, "type", "veth", "peer", "name", "eth0", "netns", i.name)
	// Delete the link before the namespace: the kernel destroys the namespace later, and the link
	// only with it.
	t.Cleanup(func() { i.run("ip", "link", "del", i.here) })
	i.run("ip", "addr", "add", i.ip+"/30", "dev", i.here)
	i.run("ip", "link", "set", i.here, "up")
	i.run("ip", "-n", i.name, "addr", "add", there+"/30", "dev", "eth0")
	i.run("ip", "-n", i.name, "link", "set", "eth0", "up")
	i.run("ip", "-n", i.name, "link", "set", "lo", "up")
	return i
}

func (i *island) run(command ...string) string {
	i.t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		i.t.Errorf("%s: %v: %s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

// sockets returns the TCP connections in the island, even those without a process.
func (i *island) sockets() string {
	return i.run("ip", "netns", "exec", i.name, "ss", "-Htn", "state", "connected")
}

// A COMMIT in the send buffer of a dead host is delivered when the network heals. Killing the
// program is no fence; this is.
func TestLatePacket(t *testing.T) {
	for _, fenced := range []bool{false, true} {
		t.Run(fmt.Sprintf("fenced=%v", fenced), func(t *testing.T) {
			i := newIsland(t)
			server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR"), Listen: i.ip})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := server.Stop(); err != nil {
					t.Error(err)
				}
			})
			r := newRepositoryOn(t, server, "a", "b")
			secret := r.raise(r.fence("a"), 1)

			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			writer := exec.Command("ip", "netns", "exec", i.name, self)
			writer.Env = append(os.Environ(), "LATE_WRITER="+server.DSN(r.role("a"), secret, r.database))
			in, err := writer.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := writer.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := writer.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			expect := func(want string) {
				t.Helper()
				if line, err := lines.ReadString('\n'); err != nil || line != want+"\n" {
					t.Fatalf("%q, not %q (%v)", line, want, err)
				}
			}
			expect("in transaction")
			i.run("ip", "link", "set", i.here, "down")
			if _, err := fmt.Fprintln(in); err != nil {
				t.Fatal(err)
			}
			expect("sent")
			if err := writer.Process.Kill(); err != nil { // ip has replaced itself by the writer
				t.Fatal(err)
			}
			_ = writer.Wait() // killed
			if i.sockets() == "" {
				t.Fatal("nothing is left in the send buffer; this test shows nothing")
			}

			took := time.Now()
			if fenced {
				r.raise(r.fence("b"), 2)
			} else if _, err := (broken{r, r.super}).noFence(t.Context(), "b", 2); err != nil {
				t.Fatal(err)
			}
			t.Logf("term 2 opened in %v", time.Since(took))
			i.run("ip", "link", "set", i.here, "up")
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			for i.sockets() != "" { // until the packet is delivered and acknowledged
				if sleep(ctx, 50*time.Millisecond) != nil {
					t.Fatal("the late packet was never delivered")
				}
			}
			// Acknowledged is not yet executed: wait until the repository has no session of the old
			// term, or only an idle one.
			for n := 1; n > 0; {
				if err := r.super.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", r.role("a")).Scan(&n); err != nil {
					t.Fatal(err)
				}
			}
			var rows int
			if err := r.super.QueryRow(ctx, "SELECT count(*) FROM work WHERE writer = 'late'").Scan(&rows); err != nil {
				t.Fatal(err)
			}
			t.Logf("rows of the old term that landed after the open of the new one: %d", rows)
			switch {
			case fenced && rows != 0:
				t.Error("a late COMMIT of an old term landed")
			case !fenced && rows != 1:
				t.Error("without a fence the late COMMIT should have landed; this test shows nothing")
			}
		})
	}
}
