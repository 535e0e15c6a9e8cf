package daemon

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/process"
)

// stopSignal returns the signal named in a checked configuration.
func stopSignal(name string) syscall.Signal {
	return unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG"))
}

// outputOf converts the key output for a driver. The ring keeps what passes through this process.
func outputOf(value, name string, log zerolog.Logger, ring *outputRing) process.Output {
	if file, ok := strings.CutPrefix(value, "file:"); ok {
		return process.Output{File: file}
	}
	switch value {
	case "journal":
		return process.Output{Journal: name}
	case "log":
		return process.Output{Line: func(line []byte) {
			ring.add(line)
			log.Info().Str("output", string(line)).Msg("")
		}}
	}
	return process.Output{}
}

// environment formats the program's variables of a file.
func environment(env map[string]string) []string {
	all := []string{}
	for _, key := range slices.Sorted(maps.Keys(env)) {
		all = append(all, key+"="+env[key])
	}
	return all
}

// starter starts what a process runs next to its program, such as checks and hooks, with the
// environment and the privileges of its programs. They get nothing that was given to Tanist itself.
type starter struct {
	inherit    config.EnvFrom
	noNewPrivs bool
}

// start starts cmd, whose Env holds what to add to the environment.
func (s starter) start(cmd *exec.Cmd) error {
	cmd.Env = append(s.inherit.Inherited(os.Environ()), cmd.Env...)
	return process.StartConfined(cmd, s.noNewPrivs)
}
