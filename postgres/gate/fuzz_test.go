package gate

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// scripted is a connection whose peer sends a script and reads nothing.
type scripted struct {
	net.Conn
	says *bytes.Reader
}

func (s *scripted) Read(b []byte) (int, error)       { return s.says.Read(b) }
func (s *scripted) Write(b []byte) (int, error)      { return len(b), nil }
func (s *scripted) Close() error                     { return nil }
func (s *scripted) SetDeadline(time.Time) error      { return nil }
func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }
func (s *scripted) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (s *scripted) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2} }

// A stranger's bytes before the login cause no panic and no endless read, and nobody is let in
// without the password.
func FuzzClient(f *testing.F) {
	encode := func(messages ...pgproto3.FrontendMessage) []byte {
		var b []byte
		for _, m := range messages {
			var err error
			if b, err = m.Encode(b); err != nil {
				f.Fatal(err)
			}
		}
		return b
	}
	startup := &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "u", "database": "d", "_pq_.x": "1"}}
	f.Add(encode(&pgproto3.SSLRequest{}, startup, &pgproto3.PasswordMessage{Password: "guess"}))
	f.Add(encode(&pgproto3.GSSEncRequest{}, startup))
	f.Add(encode(&pgproto3.CancelRequest{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}}))
	f.Add(encode(startup, &pgproto3.PasswordMessage{}))
	f.Add(binary.BigEndian.AppendUint32(nil, 1<<31))
	f.Add([]byte{0, 0, 0, 8, 0, 3, 0, 2})
	f.Add([]byte{0, 0, 0, 4})
	f.Fuzz(func(t *testing.T, said []byte) {
		g := &Gate{
			cfg:      Config{Password: "a password that is not guessed", Deadline: func() election.Instant { return election.Never }, Clock: election.BootClock, Log: zerolog.Nop()},
			sessions: map[*session]struct{}{},
		}
		s := &session{client: &scripted{says: bytes.NewReader(said)}}
		started, err := g.greet(s)
		if err != nil || started == nil {
			return
		}
		for name := range started.Parameters {
			if len(name) > maxStartup {
				t.Errorf("a parameter with a name of %d bytes", len(name))
			}
		}
		if err := g.checkPassword(s.client); err == nil && !bytes.Contains(said, []byte(g.cfg.Password)) {
			t.Error("let in without the password")
		}
	})
}

// The messages of a server, or an impostor, during the gate's login.
func FuzzServer(f *testing.F) {
	encode := func(messages ...pgproto3.BackendMessage) []byte {
		var b []byte
		for _, m := range messages {
			var err error
			if b, err = m.Encode(b); err != nil {
				f.Fatal(err)
			}
		}
		return b
	}
	f.Add(encode(&pgproto3.AuthenticationOk{}, &pgproto3.ParameterStatus{Name: "server_version", Value: "15.1"}, &pgproto3.BackendKeyData{ProcessID: 7, SecretKey: []byte{1, 2, 3, 4}}, &pgproto3.ReadyForQuery{TxStatus: 'I'}))
	f.Add(encode(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-256"}}, &pgproto3.AuthenticationSASLContinue{Data: []byte("r=x,s=eA==,i=4096")}))
	f.Add(encode(&pgproto3.AuthenticationCleartextPassword{}))
	f.Add(encode(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "no"}))
	f.Add(encode(&pgproto3.AuthenticationOk{}, &pgproto3.ReadyForQuery{TxStatus: 'T'}))
	f.Fuzz(func(t *testing.T, said []byte) {
		g, err := New(Config{
			Listen: "127.0.0.1:0", Password: "p", DSN: "host=127.0.0.1 sslmode=disable", Role: "r", Secret: "the secret of the term", Log: zerolog.Nop(),
			Deadline: func() election.Instant { return election.Never }, Connect: time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		g.dial = func(context.Context, string, string) (net.Conn, error) {
			return &scripted{says: bytes.NewReader(said)}, nil
		}
		var heard bytes.Buffer
		client := &recorder{scripted: scripted{says: bytes.NewReader(password("p"))}, heard: &heard}
		s := &session{client: client}
		err = g.connect(t.Context(), s, &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "u"}})
		if bytes.Contains(heard.Bytes(), []byte("the secret of the term")) || err != nil && bytes.Contains([]byte(err.Error()), []byte("the secret of the term")) {
			t.Error("the program was told the secret")
		}
	})
}

// recorder is scripted, and keeps what it receives.
type recorder struct {
	scripted
	heard io.Writer
}

func (r *recorder) Write(b []byte) (int, error) { return r.heard.Write(b) }

func password(p string) []byte {
	b, err := (&pgproto3.PasswordMessage{Password: p}).Encode(nil)
	if err != nil {
		panic(err)
	}
	return b
}

// Five bytes of a server, or an impostor, do not make the gate allocate a gigabyte.
func TestServerCannotMakeTheGateSetMemoryAside(t *testing.T) {
	g, err := New(Config{
		Listen: "127.0.0.1:0", Password: "p", DSN: "host=127.0.0.1 sslmode=disable", Log: zerolog.Nop(),
		Deadline: func() election.Instant { return election.Never }, Connect: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	g.dial = func(context.Context, string, string) (net.Conn, error) {
		return &scripted{says: bytes.NewReader([]byte("R\x3f\xff\xff\xff"))}, nil
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s := &session{client: &scripted{says: bytes.NewReader(password("p"))}}
	if err := g.connect(t.Context(), s, &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "u"}}); err == nil {
		t.Error("logged in")
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
		t.Errorf("%d MiB were set aside", grown>>20)
	}
}
