package private

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Superuser is the name of the server's superuser.
const Superuser = "postgres"

// Options configures a server. The zero value is good for a test.
type Options struct {
	BinDir string // directory of initdb and postgres; empty: the newest under /usr/lib/postgresql, else the PATH
	// Settings are server settings (postgresql.conf) that override the defaults.
	Settings map[string]string
	Durable  bool   // keep fsync on
	Listen   string // address to listen on; empty: 127.0.0.1
	Port     int    // 0: a free one
	// HBA are lines of pg_hba.conf that come before the usual ones.
	HBA []string
	// TLS lets the server speak TLS too, with a certificate for its address; see [Server.CA].
	TLS bool
}

// Server is one running server. Its methods are safe for concurrent use, except that Crash, Restart
// and Stop must not run at the same time.
type Server struct {
	Dir      string // the server's files are below it
	Host     string
	Port     int
	password string
	bin      string
	cred     *syscall.Credential
	opts     Options

	mu      sync.Mutex
	process *os.Process
	exited  chan struct{}
}

// Start makes a new database cluster, starts it, and returns once it accepts connections. If the
// caller is root, the server runs as the user "postgres", because PostgreSQL refuses to run as
// root.
func Start(ctx context.Context, opts Options) (*Server, error) {
	bin, err := findBin(opts.BinDir)
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, opts: opts, Host: opts.Listen, password: rand.Text()}
	if s.Host == "" {
		s.Host = "127.0.0.1"
	}
	if os.Geteuid() == 0 {
		if s.cred, err = credential("postgres"); err != nil {
			return nil, err
		}
	}
	if s.Dir, err = os.MkdirTemp("", "tanist-pg-"); err != nil {
		return nil, fmt.Errorf("cannot start a private PostgreSQL: %v", err)
	}
	if err := s.initialise(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.Dir))
	}
	return s, s.begin(ctx)
}

// Standby makes a physical standby of s and starts it. It streams from s, asynchronously unless
// synchronous_standby_names of s names it. The caller stops it separately.
func (s *Server) Standby(ctx context.Context) (*Server, error) {
	standby := &Server{bin: s.bin, opts: s.opts, Host: s.Host, password: s.password, cred: s.cred}
	var err error
	if standby.Dir, err = os.MkdirTemp("", "tanist-pg-"); err != nil {
		return nil, fmt.Errorf("cannot start a private standby: %v", err)
	}
	if s.cred != nil {
		err = os.Chown(standby.Dir, int(s.cred.Uid), int(s.cred.Gid))
	}
	if err == nil {
		args := []string{"-D", standby.data(), "-h", s.Dir, "-p", strconv.Itoa(s.Port), "-U", Superuser, "-R", "-X", "stream", "-c", "fast", "--no-sync"}
		err = standby.tool(ctx, "pg_basebackup", args...)
	}
	if err == nil {
		// The copy has the primary's socket directory; give it its own.
		err = standby.append("postgresql.auto.conf", fmt.Sprintf("unix_socket_directories = '%s'\n", standby.Dir))
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(standby.Dir))
	}
	return standby, standby.begin(ctx)
}

// begin starts a server whose files exist, and removes them if that fails.
func (s *Server) begin(ctx context.Context) (err error) {
	// Another process may take a free port before the server does; then try another one.
	for attempt := 1; ; attempt++ {
		if s.Port = s.opts.Port; s.Port == 0 {
			s.Port, err = freePort(s.Host)
		}
		if err == nil {
			err = s.launch(ctx)
		}
		if err == nil {
			return nil
		}
		if attempt == 5 || ctx.Err() != nil || !strings.Contains(err.Error(), "could not bind") {
			return errors.Join(err, os.RemoveAll(s.Dir))
		}
	}
}

func findBin(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // the pattern is well-formed
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	if len(found) > 0 {
		return filepath.Dir(found[0]), nil
	}
	path, err := exec.LookPath("initdb")
	if err != nil {
		return "", errors.New("cannot start a private PostgreSQL: no initdb under /usr/lib/postgresql nor in PATH; install the package postgresql")
	}
	return filepath.Dir(path), nil
}

func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path)))) // zero sorts last
	return n
}

func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("cannot start a private PostgreSQL as root without the user %q: %v", name, err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("cannot start a private PostgreSQL: uid of %s: %v", name, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("cannot start a private PostgreSQL: gid of %s: %v", name, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func freePort(host string) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return 0, fmt.Errorf("cannot find a free port: %v", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

func (s *Server) data() string { return filepath.Join(s.Dir, "data") }

func (s *Server) logFile() string { return filepath.Join(s.Dir, "server.log") }

func (s *Server) initialise(ctx context.Context) error {
	pw := filepath.Join(s.Dir, "superuser")
	if err := os.WriteFile(pw, []byte(s.password), 0o600); err != nil {
		return fmt.Errorf("cannot start a private PostgreSQL: %v", err)
	}
	if s.cred != nil {
		for _, path := range []string{s.Dir, pw} {
			if err := os.Chown(path, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
				return fmt.Errorf("cannot start a private PostgreSQL: %v", err)
			}
		}
	}
	args := []string{
		"-D", s.data(), "-U", Superuser, "--pwfile", pw, "--auth-local=trust", "--auth-host=scram-sha-256",
		"-E", "UTF8", "--locale=C",
	}
	if !s.opts.Durable {
		args = append(args, "--no-sync")
	}
	if err := s.tool(ctx, "initdb", args...); err != nil {
		return err
	}
	settings := map[string]string{
		"unix_socket_directories": s.Dir, "max_connections": "100", "shared_buffers": "32MB",
		"password_encryption": "scram-sha-256", "authentication_timeout": "10s", "max_prepared_transactions": "0",
		"dynamic_shared_memory_type": "mmap", // files below Dir, so nothing remains in /dev/shm
		"log_line_prefix":            "%m [%p] %q%u@%d ", "autovacuum_naptime": "1h",
		"superuser_reserved_connections": "3",
	}
	if !s.opts.Durable {
		settings["fsync"], settings["full_page_writes"] = "off", "off"
	}
	maps.Copy(settings, s.opts.Settings)
	var conf strings.Builder
	for k, v := range settings {
		fmt.Fprintf(&conf, "%s = '%s'\n", k, strings.ReplaceAll(v, "'", "''"))
	}
	if s.opts.TLS {
		if err := s.certify(); err != nil {
			return fmt.Errorf("cannot start a private PostgreSQL: %v", err)
		}
		conf.WriteString("ssl = 'on'\n")
	}
	if err := s.write("postgresql.auto.conf", conf.String()); err != nil {
		return err
	}
	// Over the socket the superuser needs no password. Every other login needs one.
	hba := strings.Join(s.opts.HBA, "\n") + "\nlocal all " + Superuser + " trust\nlocal all all scram-sha-256\nhost all all all scram-sha-256\n" +
		"local replication " + Superuser + " trust\nlocal replication all scram-sha-256\nhost replication all all scram-sha-256\n"
	return s.write("pg_hba.conf", hba)
}

// tool runs one of the server's programs as the server's user.
func (s *Server) tool(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	cmd.Dir = s.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot start a private PostgreSQL: %s: %v: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

func (s *Server) append(name, content string) error {
	old, err := os.ReadFile(filepath.Join(s.data(), name))
	if err != nil {
		return fmt.Errorf("cannot configure a private PostgreSQL: %v", err)
	}
	return s.write(name, string(old)+content)
}

// write replaces the content of a file of the data directory, keeping owner and mode.
func (s *Server) write(name, content string) error {
	f, err := os.OpenFile(filepath.Join(s.data(), name), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return fmt.Errorf("cannot configure a private PostgreSQL: %v", err)
	}
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot configure a private PostgreSQL: %v", err)
	}
	return nil
}

// launch starts the postmaster and waits until it accepts connections.
func (s *Server) launch(ctx context.Context) error {
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("cannot start a private PostgreSQL: %v", err)
	}
	defer log.Close() // the child has its own copy
	offset, err := log.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("cannot start a private PostgreSQL: %v", err)
	}
	cmd := exec.Command(filepath.Join(s.bin, "postgres"), "-D", s.data(), "-p", strconv.Itoa(s.Port), "-c", "listen_addresses="+s.Host)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Dir, log, log
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	// Setsid: a Ctrl-C at the terminal is for the starter of the server, which then ends it in
	// order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setsid: true, Pdeathsig: syscall.SIGQUIT}

	started, exited := make(chan error, 1), make(chan struct{})
	go func() {
		// The parent-death signal is sent when the starting thread ends, so this thread must stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in the server's log
			close(exited)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("cannot start a private PostgreSQL: %v", err)
	}
	s.mu.Lock()
	s.process, s.exited = cmd.Process, exited
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute) // for loaded machines
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, s.SuperDSN("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-exited:
			return fmt.Errorf("cannot start a private PostgreSQL: it ended: %s", s.logSince(offset))
		case <-ctx.Done():
			s.end(syscall.SIGQUIT)
			return fmt.Errorf("cannot start a private PostgreSQL: %v: %s", err, s.logSince(offset))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Server) logSince(offset int64) string {
	b, err := os.ReadFile(s.logFile())
	if err != nil || int64(len(b)) < offset {
		return "no log"
	}
	return strings.TrimSpace(string(b[offset:]))
}

// Log returns the server's log up to now.
func (s *Server) Log() string { return s.logSince(0) }

// SuperDSN returns the connection string of the superuser, over the socket.
func (s *Server) SuperDSN(database string) string {
	v := url.Values{"host": {s.Dir}, "port": {strconv.Itoa(s.Port)}}
	return "postgres://" + Superuser + "@/" + url.PathEscape(database) + "?" + v.Encode()
}

// DSN returns a connection string over TCP for a login. It omits an empty password.
func (s *Server) DSN(login, password, database string) string {
	u := url.URL{Scheme: "postgres", Host: net.JoinHostPort(s.Host, strconv.Itoa(s.Port)), Path: "/" + database, User: url.User(login)}
	if password != "" {
		u.User = url.UserPassword(login, password)
	}
	u.RawQuery = "sslmode=disable"
	return u.String()
}

// PID returns the process id of the postmaster.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.Pid
}

// Crash ends the server at once, without a checkpoint, as `pg_ctl stop -m immediate` does. The
// files stay.
func (s *Server) Crash() { s.end(syscall.SIGQUIT) }

// Restart starts the server again after [Server.Crash], on the same port and files.
func (s *Server) Restart(ctx context.Context) error { return s.launch(ctx) }

// Stop ends the server and removes its files. It may be called again.
func (s *Server) Stop() error {
	// The data is thrown away, so the checkpoint of a clean end is pointless.
	s.end(syscall.SIGQUIT)
	if err := os.RemoveAll(s.Dir); err != nil {
		return fmt.Errorf("cannot remove a private PostgreSQL: %v", err)
	}
	return nil
}

// end signals the postmaster and waits until it and its children have ended.
func (s *Server) end(signal syscall.Signal) {
	s.mu.Lock()
	process, exited := s.process, s.exited
	s.mu.Unlock()
	if process == nil {
		return
	}
	_ = process.Signal(signal) // if it has gone already, exited is closed
	select {
	case <-exited:
	case <-time.After(time.Minute):
		// The whole session: postmaster and its children have it as their process group leader or
		// parent.
		_ = syscall.Kill(-process.Pid, syscall.SIGKILL)
		_ = process.Kill()
		<-exited
	}
}
