package vip

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// needed are the capabilities that a keeper needs, and no other process.
const needed = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW

// Permitted returns an error if this process may not manage addresses.
func Permitted() error {
	_, permitted, err := capabilities()
	if err != nil {
		return err
	}
	if missing := needed &^ permitted; missing != 0 {
		return errors.New("cannot manage virtual IPs: CAP_NET_ADMIN and CAP_NET_RAW are missing: run as root, or under systemd " +
			"with AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW")
	}
	return nil
}

func capabilities() (effective, permitted uint64, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, 0, fmt.Errorf("cannot read the capabilities of this process: %v", err)
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted), nil
}

// onlyNetwork drops every capability but those needed, on all threads, permanently.
func onlyNetwork() error {
	if err := Permitted(); err != nil {
		return err
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		if errno == unix.ENOTSUP {
			return nil // built with cgo, for example under the race detector; a release is not
		}
		return fmt.Errorf("cannot give up privileges: %v", errno)
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("cannot give up ambient capabilities: %v", errno)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: needed, Permitted: needed}}
	return setCapabilities(&header, &data)
}

// prefer raises the keeper's scheduling priority and lowers its OOM score, if permitted. It uses
// capabilities that are dropped afterwards.
func prefer() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0)
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range threads { // later threads inherit it
		if id, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, id, -20)
		}
	}
}
