package unit

import (
	"context"
	"os"
)

// The commands that a guard runs, as a status and a kill command of its unit.
const (
	StatusCommand = "unit-status"
	StopCommand   = "unit-stop"
)

// Command returns how a guard runs one of them: as its own binary.
func Command(command, unit, address string) []string {
	return []string{"/proc/self/exe", "guard", command, unit, address}
}

// Main is such a command, if args (after "guard") are one. It ends as status commands do: 0 if the
// unit runs or is about to, 3 if it is not and will not, 4 if systemd does not tell.
func Main(args []string) (code int, is bool) {
	if len(args) < 3 || args[0] != StatusCommand && args[0] != StopCommand {
		return 0, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), CallWithin)
	defer cancel()
	m, err := Connect(ctx, args[2])
	if err != nil {
		_, _ = os.Stderr.WriteString("tanist guard: " + err.Error() + "\n")
		return 4, true
	}
	defer m.Close()
	if args[0] == StopCommand {
		if err := m.Stop(ctx, args[1]); err != nil {
			_, _ = os.Stderr.WriteString("tanist guard: " + err.Error() + "\n")
			return 1, true
		}
		return 0, true
	}
	idle, _, err := m.Idle(ctx, args[1])
	switch {
	case err != nil:
		return 4, true
	case idle:
		return 3, true
	}
	return 0, true
}
