package vip

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Level is the severity of a [Finding].
type Level int

// The levels.
const (
	LevelOK Level = iota
	LevelWarning
	LevelFailure
)

// Finding is one result of [Examine].
type Finding struct {
	Address Address
	Level   Level
	Text    string
}

// askFor is how long Examine waits for answers from the network.
const askFor = 300 * time.Millisecond

// Examine reports what would prevent this host from holding the addresses, or users from reaching
// them here. It changes nothing. heldBy returns the controller that holds an address, or "".
func Examine(ctx context.Context, addresses []Address, heldBy func(Address) string) []Finding {
	var all []Finding
	add := func(a Address, level Level, format string, args ...any) {
		all = append(all, Finding{a, level, fmt.Sprintf(format, args...)})
	}
	kernel, err := openKernel()
	var v view
	if err == nil {
		defer kernel.close()
		v, err = kernel.look()
	}
	if err != nil {
		for _, a := range addresses {
			add(a, LevelFailure, "%v", err)
		}
		return all
	}
	allowed := Permitted()
	for _, a := range addresses {
		if allowed != nil {
			add(a, LevelWarning, "this process may not ask the network: %v", allowed)
		}
		l, ok := v.links[a.Interface]
		switch {
		case !ok:
			add(a, LevelFailure, "there is no interface %s on this host: correct virtual_ip, or create it", a.Interface)
			continue
		case !l.up:
			add(a, LevelFailure, "interface %s is down: `ip link set %s up`", a.Interface, a.Interface)
			continue
		}
		examineNetwork(a, v, add)
		p, here := v.find(a)
		switch {
		case here && !p.mine:
			add(a, LevelFailure, "it is on %s, and Tanist did not add it: `ip addr del %s dev %s`", a.Interface, p.Prefix, a.Interface)
		case here && heldBy(a) == "":
			add(a, LevelFailure, "it is on this host, and no controller holds it")
		case here:
			add(a, LevelOK, "it is on this host, held by %s", heldBy(a))
		}
		if allowed == nil && len(l.mac) == 6 {
			examineAnswers(ctx, a, l, here, heldBy(a), add)
		}
	}
	return all
}

type addFinding func(a Address, level Level, format string, args ...any)

func examineNetwork(a Address, v view, add addFinding) {
	onLink := false
	for _, p := range v.there {
		if p.Interface == a.Interface && p.Prefix.Addr() != a.Prefix.Addr() && p.Prefix.Contains(a.Prefix.Addr()) {
			onLink = true
		}
	}
	if onLink {
		add(a, LevelOK, "interface %s is up and in its network", a.Interface)
		return
	}
	add(a, LevelWarning, "%s has no other address in the network of %s: answers to users may leave by another interface", a.Interface, a.Prefix.Addr())
	if a.Prefix.Addr().Is4() && max(setting("all"), setting(a.Interface)) == 1 {
		add(a, LevelWarning, "rp_filter is strict on %s: packets from users who are routed by another interface are dropped; "+
			"`sysctl net.ipv4.conf.%s.rp_filter=2` accepts them", a.Interface, a.Interface)
	}
}

// setting returns rp_filter of an interface; 0 if it can't be read.
func setting(name string) int {
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + name + "/rp_filter")
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return n
}

// examineAnswers asks the network who has the address.
func examineAnswers(ctx context.Context, a Address, l link, here bool, holder string, add addFinding) {
	heard := make(chan claim, 16)
	p, err := openPort(a.Interface, l.index, []Address{a}, heard)
	if err != nil {
		add(a, LevelWarning, "%v", err)
		return
	}
	defer p.close()
	frames, err := probe(l.mac, a.Prefix.Addr())
	if err == nil {
		err = p.send(a.Prefix.Addr(), frames...)
	}
	if err != nil {
		add(a, LevelWarning, "cannot ask the network for it: %v", err)
		return
	}
	timer := time.NewTimer(askFor)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			if !here && holder != "" {
				add(a, LevelFailure, "nobody answers for it on %s, and %s holds it: this host is in another network, or ARP is filtered", a.Interface, holder)
			} else {
				add(a, LevelOK, "nobody else answers for it")
			}
			return
		case c := <-heard:
			switch {
			case c.ip != a.Prefix.Addr() || bytes.Equal(c.mac, l.mac):
				continue
			case here:
				add(a, LevelFailure, "%s answers for it too: a former holder whose processes are frozen, or a host that has it by mistake", c.mac)
			case holder == "":
				add(a, LevelFailure, "%s answers for it, and no controller holds it: find that host, and remove it there", c.mac)
			default:
				add(a, LevelOK, "%s answers for it, held by %s", c.mac, holder)
			}
			return
		}
	}
}
