package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tanist/tanist/election"
)

// ErrClosed is the error of a call after Close.
var ErrClosed = errors.New("the store was closed")

// errPooler reports a connection that does not lead to the server itself.
var errPooler = errors.New("there is a connection pooler in between, which swallows notifications and shares sessions: connect to the server itself")

// errLayout reports a database without the tables of this version.
type errLayout int

func (e errLayout) Error() string {
	return fmt.Sprintf("the database was prepared by an older version (layout %d, this one needs %d): run `tanist store init` again", int(e), layout)
}

// errUnconfirmed reports a commit that is not on the synchronous standby.
var errUnconfirmed = errors.New("the server did not wait for its synchronous standby, so the outcome is unknown")

// meaning turns an answer of the server into the store's error, and returns any other error with
// its outcome unknown.
func meaning(err error) error {
	var pe *pgconn.PgError
	if err == nil || !errors.As(err, &pe) {
		return err
	}
	switch pe.Code {
	case "28P01", "28000", "42501":
		return fmt.Errorf("%w: %s (SQLSTATE %s)", election.ErrDenied, pe.Message, pe.Code)
	case "23503": // the foreign key: somebody has ended the lease by hand
		return election.ErrLost
	case "25006", "53100": // read only, disk full
		return fmt.Errorf("%w: %s (SQLSTATE %s)", election.ErrReadOnly, pe.Message, pe.Code)
	case "3D000":
		return fmt.Errorf("%s (SQLSTATE %s): create it, or correct the connection string", pe.Message, pe.Code)
	case "3F000", "42883", "42P01":
		return fmt.Errorf("%s (SQLSTATE %s): run `tanist store init` on this database", pe.Message, pe.Code)
	case "08P01", "0A000":
		return fmt.Errorf("%s (SQLSTATE %s): if this is a connection pooler, connect to the server itself", pe.Message, pe.Code)
	}
	return fmt.Errorf("%s (SQLSTATE %s)", pe.Message, pe.Code)
}

// loginRefused reports whether another password may be accepted.
func loginRefused(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && (pe.Code == "28P01" || pe.Code == "28000")
}

// unparsed is the error of a connection string that can't be used. pgx would quote it, and masks
// the password in most cases only.
func unparsed(err error) error {
	if path, ok := errors.AsType[*os.PathError](err); ok {
		return fmt.Errorf("cannot use the connection string: %s %s: %v", path.Op, path.Path, path.Err)
	}
	return errors.New("cannot use the connection string: a setting has a value that can't be used")
}

// unconnected is the error of a failed connection: where, and why.
func unconnected(err error, cfg *pgx.ConnConfig) error {
	where := []string{net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))}
	for _, f := range cfg.Fallbacks {
		if at := net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port))); !slices.Contains(where, at) {
			where = append(where, at)
		}
	}
	return fmt.Errorf("cannot connect to %s: %w", strings.Join(where, ", "), reason(err))
}

// reason is the cause of a failed connection, without the user and the database that pgx quotes.
func reason(err error) error {
	var pe *pgconn.PgError
	var errno syscall.Errno
	var dns *net.DNSError
	text := err.Error()
	switch {
	case errors.As(err, &pe):
		return meaning(pe)
	case errors.Is(err, errPooler), errors.As(err, new(errLayout)):
		return err
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		return context.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case strings.Contains(text, "x509: "):
		return errors.New(strings.TrimRight(text[strings.LastIndex(text, "x509: "):], ")"))
	case strings.Contains(text, "tls: "):
		return errors.New(strings.TrimRight(text[strings.LastIndex(text, "tls: "):], ")"))
	case strings.Contains(text, "server refused TLS"):
		return errors.New("the server does not speak TLS")
	case strings.Contains(text, "read only"), strings.Contains(text, "ValidateConnect"):
		return fmt.Errorf("%w: the servers are standbys, or read-only", election.ErrReadOnly)
	}
	return io.ErrUnexpectedEOF
}
