package postgres

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tanist/tanist/election"
)

// ErrTerm matches, with errors.Is, every answer of the repository that the caller's term does not
// hold there: [*AheadError] and [*LostError]. It is definitive: retrying changes nothing. Any other
// error means that the request did not reach the repository or was not carried out.
var ErrTerm = errors.New("the repository is not open for this term")

// AheadError reports that the repository is at a higher term, or at the same term with another
// holder. Only a term above [AheadError.RepositoryTerm] can be raised.
type AheadError struct {
	Mine, Theirs election.Term
	Holder       string
	text         string
}

func (e *AheadError) Error() string { return e.text }

// Unwrap returns [ErrTerm].
func (e *AheadError) Unwrap() error { return ErrTerm }

// RepositoryTerm returns the term of the repository.
func (e *AheadError) RepositoryTerm() election.Term { return e.Theirs }

// Superseded returns true: the repository belongs to another term.
func (e *AheadError) Superseded() bool { return true }

// LostError reports that the repository is no longer open for a term that was opened there: its
// term is lower (it was restored, or failed over to a standby that had not received the fence), or
// the term is not open. The program must be stopped, and a new term taken.
type LostError struct {
	Mine, Theirs election.Term
	Phase        string // closed fencing open
	text         string
}

func (e *LostError) Error() string { return e.text }

// Unwrap returns [ErrTerm].
func (e *LostError) Unwrap() error { return ErrTerm }

// Superseded returns true: the reign of this term is over.
func (e *LostError) Superseded() bool { return true }

// The SQLSTATEs of the fence's functions.
const (
	stateAhead     = "TN001"
	stateOvertaken = "TN002"
	statePhase     = "TN003"
	stateStranger  = "TN004"
	stateAgain     = "TN005"
	stateHollow    = "TN006"
)

// detail is what the functions report about the fence when they refuse.
type detail struct {
	Term    election.Term `json:"term"`
	Holder  string        `json:"holder"`
	Phase   string        `json:"phase"`
	Attempt int64         `json:"attempt"`
}

// refusal extracts the SQLSTATE and the detail from an error of the fence's functions.
func refusal(err error) (string, detail) {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return "", detail{}
	}
	var d detail
	if len(pe.Code) == 5 && pe.Code[:2] == "TN" && pe.Detail != "" {
		if json.Unmarshal([]byte(pe.Detail), &d) != nil {
			return "", detail{} // not ours
		}
	}
	return pe.Code, d
}

// definitive turns the repository's refusal of a term into its error, and returns any other error
// unchanged.
func definitive(err error, mine election.Term) error {
	code, d := refusal(err)
	switch code {
	case stateAhead:
		return &AheadError{Mine: mine, Theirs: d.Term, Holder: d.Holder, text: fmt.Sprintf(
			"the repository is at term %d of %s; term %d is refused there", d.Term, d.Holder, mine)}
	case statePhase:
		return &LostError{Mine: mine, Theirs: d.Term, Phase: d.Phase, text: fmt.Sprintf(
			"the repository is at term %d (%s), not at term %d as it should be", d.Term, d.Phase, mine)}
	}
	return err
}

// hopeless reports whether retrying can't help. A refused password can become valid if the
// connection string is read again.
func (f *Fence) hopeless(err error) bool {
	return hopeless(err) && (f.cfg.ReadDSN == nil || !loginRefused(err))
}

// hopeless reports whether retrying can't help until an operator changes something.
func hopeless(err error) bool {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return false
	}
	switch pe.Code {
	case stateStranger, stateHollow,
		"28P01", "28000", // wrong password, login not permitted
		"3D000",          // no such database
		"3F000", "42883", // no schema tanist, no such function
		"42501",          // not allowed
		"42704", "0P000", // no such role
		"22023", // not a verifier
		"42P01": // no such table
		return true
	}
	return false
}

// advice returns what to do about errors with a usual cause.
func advice(err error) string {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return ""
	}
	switch pe.Code {
	case stateStranger, "3F000", "42883":
		return `; run "tanist repository init" on this database`
	case "28P01", "28000":
		return "; check the password in repository.dsn_file"
	case "42501":
		return "; the login lacks a right: is it the sidecar's login, and has the repository been set up by a superuser?"
	case "25006":
		return "; this is a standby, or it is read-only: point repository.dsn_file to the primary (target_session_attrs=read-write)"
	case "53300":
		return "; all connection slots are taken"
	case "08P01":
		return "; if this is a connection pooler: the fence needs a direct connection"
	}
	return ""
}
