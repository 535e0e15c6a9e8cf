package operate

import (
	"errors"
	"fmt"

	"github.com/tanist/tanist/election"
)

// Kind is what an operator can do about an [Error].
type Kind int

// The kinds of errors.
const (
	Refused     Kind = iota // it is not possible as things are
	Invalid                 // the request itself is wrong
	Unknown                 // there is nothing of that name
	NotActive               // nobody is active
	InProgress              // it goes on, and nobody waits for it any more
	Unreachable             // the store does not answer
	Denied                  // the store denies it to this login
)

// Error is an error of this package.
type Error struct {
	Kind Kind
	err  error
}

func (e *Error) Error() string { return e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Errorf returns a new error of a kind.
func Errorf(kind Kind, format string, args ...any) error {
	return &Error{kind, fmt.Errorf(format, args...)}
}

// KindOf returns the kind of an error, [Refused] if it has none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Refused
}

// ReadError returns the error for a read of the store that failed with err.
func ReadError(err error, what string) error {
	if errors.Is(err, election.ErrDenied) {
		return Errorf(Denied, "%s: %v: give this user or token the rights that `tanist doctor` names", what, err)
	}
	return Errorf(Unreachable, "%s: %v", what, err)
}

// WriteError is [ReadError] for a write, whose outcome may be unknown.
func WriteError(err error, what string) error {
	if errors.Is(err, election.ErrDenied) {
		return ReadError(err, what+" could not be written")
	}
	return Errorf(Unreachable, "cannot confirm that %s was written: %v: see `tanist list`", what, err)
}
