package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/smtp"
	"net/textproto"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/tanist/tanist/election"
)

// The protections of the connection to a mail server.
const (
	MailStartTLS = "starttls" // required
	MailTLS      = "tls"      // from the beginning
	MailPlain    = "none"
)

// Mail sends notices by e-mail.
type Mail struct {
	Server       string // host:port
	From         string
	To           []string
	Username     string
	PasswordFile string // read for each notice
	TLS          string // MailStartTLS, MailTLS or MailPlain
	CAFile       string // read for each notice; empty: the system's
}

// Check returns an error if the configuration is unusable. It begins with the key.
func (m *Mail) Check() error {
	if _, port, err := net.SplitHostPort(m.Server); err != nil || port == "" {
		return fmt.Errorf("server: %q is not host:port, such as mail.example:587", m.Server)
	}
	if _, err := mail.ParseAddress(m.From); err != nil {
		return fmt.Errorf("from: %q is not an address", m.From)
	}
	if len(m.To) == 0 {
		return errors.New("to: it is empty")
	}
	for i, to := range m.To {
		if _, err := mail.ParseAddress(to); err != nil {
			return fmt.Errorf("to[%d]: %q is not an address", i, to)
		}
	}
	switch {
	case (m.Username == "") != (m.PasswordFile == ""):
		return errors.New("username: username and password_file belong together: give both or none")
	case m.Username != "" && m.TLS == MailPlain:
		return errors.New("tls: with none, the password would cross the network in clear")
	}
	return nil
}

// Send implements the method of [Channel].
func (m *Mail) Send(ctx context.Context, n Notice) (err error) {
	host, _, err := net.SplitHostPort(m.Server)
	if err != nil {
		return &Rejected{err}
	}
	trust, err := election.OpenTrust(election.TrustFiles{CAFile: m.CAFile, ServerName: host})
	if err != nil {
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", m.Server)
	if err != nil {
		return fmt.Errorf("cannot reach the mail server: %w", err)
	}
	defer func() { _ = conn.Close() }() // the server has said whether it took the message
	if until, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(until); err != nil {
			return err
		}
	}
	if m.TLS == MailTLS {
		conn = tls.Client(conn, trust.Config())
	}
	c, err := smtp.NewClient(conn, host)
	if err != nil {
		return fmt.Errorf("cannot talk to the mail server: %w", err)
	}
	return judged(m.talk(c, trust.Config(), host, n))
}

// talk sends one message over a connection.
func (m *Mail) talk(c *smtp.Client, over *tls.Config, host string, n Notice) error {
	if name, err := os.Hostname(); err == nil && !strings.ContainsAny(name, " \r\n") {
		if err := c.Hello(name); err != nil {
			return err
		}
	}
	if m.TLS == MailStartTLS {
		if ok, _ := c.Extension("STARTTLS"); !ok {
			return errors.New("the mail server does not offer STARTTLS")
		}
		if err := c.StartTLS(over); err != nil {
			return err
		}
	}
	if m.Username != "" {
		password, err := secret(m.PasswordFile)
		if err != nil {
			return err
		}
		if err := c.Auth(smtp.PlainAuth("", m.Username, password, host)); err != nil {
			return err
		}
	}
	from, err := mail.ParseAddress(m.From)
	if err != nil {
		return err
	}
	if err := c.Mail(from.Address); err != nil {
		return err
	}
	for _, text := range m.To {
		to, err := mail.ParseAddress(text)
		if err != nil {
			return err
		}
		if err := c.Rcpt(to.Address); err != nil {
			return err
		}
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(m.message(n)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	_ = c.Quit() // the message has been accepted
	return nil
}

// judged makes a permanent error of the server one that is not retried.
func judged(err error) error {
	if reply, ok := errors.AsType[*textproto.Error](err); ok {
		err = fmt.Errorf("the mail server responds %d: %.200q", reply.Code, reply.Msg)
		if reply.Code/100 == 5 {
			return &Rejected{err}
		}
	}
	return err
}

// message returns the message. No text can begin another header.
func (m *Mail) message(n Notice) []byte {
	line := func(s string) string {
		return strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' '
			}
			return r
		}, s)
	}
	var b bytes.Buffer
	header := func(name, value string) { fmt.Fprintf(&b, "%s: %s\r\n", name, line(value)) }
	header("From", m.From)
	header("To", strings.Join(m.To, ", "))
	header("Subject", mime.QEncoding.Encode("utf-8", line(n.Title()+": "+n.Text)))
	header("Date", time.Now().Format(time.RFC1123Z))
	header("Message-ID", fmt.Sprintf("<%s.%s@tanist>", n.ID, n.Cluster)) // the same from every member
	header("Auto-Submitted", "auto-generated")
	header("MIME-Version", "1.0")
	header("Content-Type", "text/plain; charset=utf-8")
	header("Content-Transfer-Encoding", "quoted-printable")
	b.WriteString("\r\n")
	q := quotedprintable.NewWriter(&b)
	facts := fmt.Sprintf("%s\r\n\r\nevent: %s\r\nseverity: %s\r\ncluster: %s\r\n", line(n.Text), n.Event, n.Severity, n.Cluster)
	if n.Name != "" {
		facts += "controller: " + line(n.Name) + "\r\n"
	}
	if n.Term != 0 {
		facts += fmt.Sprintf("term: %d\r\n", n.Term)
	}
	facts += "at: " + n.At.Format(time.RFC3339) + "\r\n"
	_, _ = q.Write([]byte(facts)) // to memory
	_ = q.Close()
	return b.Bytes()
}
