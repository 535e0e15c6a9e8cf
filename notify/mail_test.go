package notify

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// mailServer is a mail server that takes what it is told, and notes it.
type mailServer struct {
	listener net.Listener
	tls      *tls.Config
	offers   bool   // STARTTLS
	refuses  string // the reply to RCPT; empty: it accepts

	mu      sync.Mutex
	said    []string // the commands
	message string
}

// startMail starts a server that ends with the test. It returns the files of its certificate.
func startMail(t *testing.T, s *mailServer, implicit bool) election.TrustFiles {
	t.Helper()
	files := electiontest.Certificates(t, t.TempDir())
	pair, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	s.tls = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if implicit {
		s.listener = tls.NewListener(s.listener, s.tls)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				s.talk(conn)
			})
		}
	})
	t.Cleanup(func() {
		s.listener.Close()
		serving.Wait()
	})
	return files
}

// talk holds one conversation (RFC 5321, 3207, 4954).
func (s *mailServer) talk(conn net.Conn) {
	in := bufio.NewReader(conn)
	reply := func(format string, args ...any) { fmt.Fprintf(conn, format+"\r\n", args...) }
	reply("220 mail.example ESMTP")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		s.mu.Lock()
		s.said = append(s.said, line)
		s.mu.Unlock()
		verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
		switch verb {
		case "EHLO":
			reply("250-mail.example")
			if s.offers {
				reply("250-STARTTLS")
			}
			reply("250 AUTH PLAIN")
		case "STARTTLS":
			reply("220 go ahead")
			over := tls.Server(conn, s.tls)
			conn, in = over, bufio.NewReader(over)
			reply = func(format string, args ...any) { fmt.Fprintf(over, format+"\r\n", args...) }
		case "AUTH":
			reply("235 ok")
		case "RCPT":
			if s.refuses != "" {
				reply("%s", s.refuses)
				continue
			}
			reply("250 ok")
		case "DATA":
			reply("354 end with a dot")
			var text strings.Builder
			for {
				part, err := in.ReadString('\n')
				if err != nil || part == ".\r\n" {
					break
				}
				text.WriteString(part)
			}
			s.mu.Lock()
			s.message = text.String()
			s.mu.Unlock()
			reply("250 queued")
		case "QUIT":
			reply("221 bye")
			return
		default:
			reply("250 ok")
		}
	}
}

// TestMailIsSent: the conversation and the message, over STARTTLS, over TLS and in clear.
func TestMailIsSent(t *testing.T) {
	for _, kind := range []string{MailStartTLS, MailTLS, MailPlain} {
		t.Run(kind, func(t *testing.T) {
			s := &mailServer{offers: kind == MailStartTLS}
			files := startMail(t, s, kind == MailTLS)
			m := &Mail{Server: s.listener.Addr().String(), From: "Tanist <tanist@orders.example>", To: []string{"ops@orders.example", "Ana <ana@orders.example>"}, TLS: kind, CAFile: files.CAFile}
			if kind != MailPlain {
				m.Username, m.PasswordFile = "tanist", filepath.Join(t.TempDir(), "password")
				write(t, m.PasswordFile, "geheim\n")
			}
			if err := m.Check(); err != nil {
				t.Fatal(err)
			}
			n := down
			n.Text = "nobody is active: früher\r\nBcc: eve@example\r\n.\r\nQUIT"
			if err := m.Send(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			said := strings.Join(s.said, "\n")
			for _, want := range []string{"MAIL FROM:<tanist@orders.example>", "RCPT TO:<ops@orders.example>", "RCPT TO:<ana@orders.example>", "DATA"} {
				if !strings.Contains(said, want) {
					t.Errorf("%q was not said: %s", want, said)
				}
			}
			if auth := "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00tanist\x00geheim")); strings.Contains(said, auth) != (kind != MailPlain) {
				t.Errorf("said: %s", said)
			}
			message, err := mail.ReadMessage(strings.NewReader(s.message))
			if err != nil {
				t.Fatalf("%v: %s", err, s.message)
			}
			subject, err := new(mime.WordDecoder).DecodeHeader(message.Header.Get("Subject"))
			if err != nil || subject != "orders: down: nobody is active: früher  Bcc: eve@example  .  QUIT" || message.Header.Get("Bcc") != "" {
				t.Errorf("the subject is %q, %v", subject, err)
			}
			if id := message.Header.Get("Message-ID"); id != "<down-7.orders@tanist>" {
				t.Errorf("the id is %q", id)
			}
			body, err := io.ReadAll(quotedprintable.NewReader(message.Body))
			if err != nil || !strings.HasPrefix(string(body), "nobody is active: früher") || !strings.Contains(string(body), "\r\nterm: 7\r\n") {
				t.Errorf("the body is %q, %v", body, err)
			}
		})
	}
}

// TestMailThatIsNotSent: no password without TLS, no certificate of a stranger, and what a server
// refuses for good is not retried.
func TestMailThatIsNotSent(t *testing.T) {
	for name, c := range map[string]struct {
		offers   bool
		refuses  string
		trusted  bool
		want     string
		rejected bool
	}{
		"no STARTTLS":            {false, "", true, "does not offer STARTTLS", false},
		"a stranger's server":    {true, "", false, "certificate", false},
		"an unknown recipient":   {true, "550 no such user", true, "the mail server responds 550: \"no such user\"", true},
		"a mailbox that is full": {true, "452 try later", true, "responds 452", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &mailServer{offers: c.offers, refuses: c.refuses}
			files := startMail(t, s, false)
			m := &Mail{
				Server: s.listener.Addr().String(), From: "tanist@orders.example", To: []string{"ops@orders.example"}, TLS: MailStartTLS,
				Username: "tanist", PasswordFile: filepath.Join(t.TempDir(), "password"),
			}
			write(t, m.PasswordFile, "geheim\n")
			if c.trusted {
				m.CAFile = files.CAFile
			}
			err := m.Send(t.Context(), down)
			_, rejected := errors.AsType[*Rejected](err)
			if err == nil || !strings.Contains(err.Error(), c.want) || rejected != c.rejected {
				t.Errorf("%v", err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if said := strings.Join(s.said, "\n"); !c.trusted && strings.Contains(said, "AUTH") || strings.Contains(err.Error(), "geheim") || s.message != "" {
				t.Errorf("said: %s", said)
			}
		})
	}
}
