package process

import (
	"fmt"
	"os"

	"github.com/tanist/tanist/process/internal/kernel"
)

// HostID names this host as it is since it booted, and the PID namespace: a PID of another host, of
// before a reboot, or of another container means nothing here.
func HostID() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("cannot read the host's name: %v", err)
	}
	boot, err := kernel.BootID()
	if err != nil {
		return "", err
	}
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return "", fmt.Errorf("cannot read the PID namespace: %v", err)
	}
	return name + "/" + boot + "/" + space, nil
}
