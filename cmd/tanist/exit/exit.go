package exit

import (
	"errors"
	"fmt"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
)

// The exit codes, the same for every command.
const (
	OK         = 0
	Failure    = 1
	NotActive  = 3
	Usage      = 64
	Store      = 69 // the store or every controller is unreachable
	Bug        = 70
	InProgress = 75
	Denied     = 77
	Config     = 78
	Force      = 107 // refused; --force overrides
)

// Exit codes that `tanist run` adds to those of its command, as shells do.
const (
	NotFound = 127
	Signal   = 128 // + the number of the signal
)

// Meaning is the meaning of an exit code for a script.
type Meaning struct {
	Code  int
	Means string
}

// Codes lists the exit codes with their meanings.
func Codes() []Meaning {
	return []Meaning{
		{OK, "done; it is active"},
		{Failure, "failure"},
		{NotActive, "not active"},
		{Usage, "the command line is invalid"},
		{Store, "the store, or every controller, is unreachable"},
		{Bug, "a bug"},
		{InProgress, "still in progress"},
		{Denied, "access denied"},
		{Config, "the configuration is unusable, or the name is taken"},
		{Force, "refused for safety; --force overrides"},
	}
}

// coded is an error with an exit code.
type coded struct {
	code int
	err  error
}

func (e *coded) Error() string { return e.err.Error() }
func (e *coded) Unwrap() error { return e.err }

// With returns err with an exit code.
func With(code int, err error) error { return &coded{code, err} }

// Errorf returns a new error with an exit code.
func Errorf(code int, format string, args ...any) error {
	return &coded{code, fmt.Errorf(format, args...)}
}

// Command is the exit code of the command that `tanist run` ran. The command has reported its own
// error, so main prints nothing.
type Command int

func (e Command) Error() string {
	return fmt.Sprintf("the command ended with exit code %d", int(e))
}

// Code returns the exit code of an error: its own or that of its kind.
func Code(err error) int {
	if err == nil {
		return OK
	}
	if command, ok := errors.AsType[Command](err); ok {
		return int(command)
	}
	if own, ok := errors.AsType[*coded](err); ok {
		return own.code
	}
	if op, ok := errors.AsType[*operate.Error](err); ok {
		return ofOperation(op.Kind)
	}
	_, problems := errors.AsType[config.Problems](err)
	switch {
	case problems || errors.Is(err, election.ErrNameTaken):
		return Config
	case errors.Is(err, election.ErrDenied):
		return Denied
	default:
		return Failure
	}
}

func ofOperation(kind operate.Kind) int {
	switch kind {
	case operate.Invalid:
		return Usage
	case operate.NotActive:
		return NotActive
	case operate.InProgress:
		return InProgress
	case operate.Unreachable:
		return Store
	case operate.Denied:
		return Denied
	default:
		return Failure
	}
}
