package kernel

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

func IsZombie(pid int) bool {
	b, err := os.ReadFile(ProcPath(pid, "stat"))
	if err != nil {
		return true
	}
	i := strings.LastIndexByte(string(b), ')')
	return i+2 < len(b) && b[i+2] == 'Z'
}

// Describe tells what could not be killed.
func Describe(count, pid int) string {
	words := fmt.Sprintf("%d processes are left", count)
	if count == 1 {
		words = "1 process is left"
	}
	b, err := os.ReadFile(ProcPath(pid, "stat"))
	if err != nil {
		return words
	}
	open, shut := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || shut < open || shut+2 >= len(b) {
		return words
	}
	return fmt.Sprintf("%s, such as %d (%s) in state %c", words, pid, b[open+1:shut], b[shut+2])
}

func ProcPath(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot read the boot id: %v", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// BeganAt returns when a process began, in clock ticks since the host booted.
func BeganAt(pid int) (uint64, error) {
	b, err := os.ReadFile(ProcPath(pid, "stat"))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	fields := strings.Fields(rest) // from field 3 on
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("cannot read when process %d began", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// SetName sets the name under which ps shows the guard, and under which it is told from what it
// guards.
func SetName(name string) {
	_ = os.WriteFile("/proc/self/comm", []byte(name), 0)
}
