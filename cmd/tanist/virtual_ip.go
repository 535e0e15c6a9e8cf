package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/operate"
	"github.com/tanist/tanist/vip"
)

// The information about virtual IPs comes from the statuses that sidecars and tanist vip keep in the
// store.

// addressHost is a host with virtual IPs.
type addressHost struct {
	name       string // for people
	controller string // the addresses are here while it is active
	addresses  []election.VirtualIP
}

// addressHosts returns the hosts of sidecars and those of tanist vip.
func addressHosts(controllers []election.Controller, vips []election.VIPHost) []addressHost {
	var all []addressHost
	for _, c := range controllers {
		all = append(all, addressHost{c.Name, c.Name, c.VirtualIPs})
	}
	for _, v := range vips {
		all = append(all, addressHost{vipHostName(v), v.Controller, v.VirtualIPs})
	}
	return all
}

func vipHostName(v election.VIPHost) string { return v.Name + " (for " + v.Controller + ")" }

// onHost reports whether the host of a status has the address.
func onHost(v election.VirtualIP) bool {
	return v.State == string(vip.StateHeld) || v.State == string(vip.StateContested)
}

// holderOf returns the name of the host that has an address, or "". If two report it, the lease
// decides: a frozen process can't withdraw its status.
func holderOf(snap election.Snapshot, hosts []addressHost, address string) string {
	holder := ""
	for _, h := range hosts {
		for _, v := range h.addresses {
			if v.Address == address && onHost(v) && (holder == "" || operate.Holds(snap, h.controller)) {
				holder = h.name
			}
		}
	}
	return holder
}

// virtualIPText describes the state of an address on a host.
func virtualIPText(name string, v election.VirtualIP) string {
	address, on := clean(v.Address), clean(v.Interface)
	switch vip.State(v.State) {
	case vip.StateHeld:
		return fmt.Sprintf("%s has %s on %s", clean(name), address, on)
	case vip.StateContested:
		return fmt.Sprintf("%s has %s on %s, but not alone%s", clean(name), address, on, because(v.Why))
	case vip.StateAbsent:
		if v.Why != "" {
			return fmt.Sprintf("%s can't take %s on %s%s", clean(name), address, on, because(v.Why))
		}
		return fmt.Sprintf("%s does not have %s", clean(name), address)
	default:
		return fmt.Sprintf("%s: %s on %s is %s%s", clean(name), address, on, clean(v.State), because(v.Why))
	}
}

// virtualIPTable prints the hosts of the addresses, and the problems of the addresses on other
// hosts.
func virtualIPTable(out io.Writer, hosts []addressHost) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	header := false
	for _, h := range hosts {
		for _, v := range h.addresses {
			if v.State == string(vip.StateAbsent) && v.Why == "" {
				continue
			}
			if !header {
				fmt.Fprintln(w, " VIRTUAL IP\tON\tINTERFACE\tSTATE\tNOTE")
				header = true
			}
			fmt.Fprintf(w, " %s\t%s\t%s\t%s\t%s\n", clean(v.Address), clean(h.name), clean(v.Interface), clean(v.State), cmp.Or(clean(v.Why), "-"))
		}
	}
	_ = w.Flush() // the reader has gone
}

// explainVirtualIPs explains where the addresses are, and why one is not where it should be.
func explainVirtualIPs(out io.Writer, snap election.Snapshot, hosts []addressHost) {
	told := map[string]bool{}
	for _, h := range hosts {
		for _, v := range h.addresses {
			if v.State != string(vip.StateAbsent) || v.Why != "" {
				fmt.Fprintf(out, "%s.\n", virtualIPText(h.name, v))
			}
			if !told[v.Address] && holderOf(snap, hosts, v.Address) == "" {
				fmt.Fprintf(out, "No host has %s.\n", clean(v.Address))
			}
			told[v.Address] = true
		}
	}
}

// vipHostChanges describes the changes of the addresses of the hosts with tanist vip.
func vipHostChanges(old, now []election.VIPHost, tell told) {
	before := map[string]election.VIPHost{}
	for _, v := range old {
		before[v.Name] = v
	}
	for _, v := range now {
		virtualIPChanges(vipHostName(v), before[v.Name].VirtualIPs, v.VirtualIPs, tell)
	}
}

// virtualIPChanges describes the changes of the addresses of one host.
func virtualIPChanges(name string, was, is []election.VirtualIP, tell told) {
	before := map[string]election.VirtualIP{}
	for _, v := range was {
		before[v.Address] = v
	}
	for _, v := range is {
		old, known := before[v.Address]
		if known && old.State == v.State || !known && v.State == string(vip.StateAbsent) {
			continue
		}
		tell("virtual-ip-"+v.State, name, 0, "%s", virtualIPText(name, v))
	}
}

// examineVirtualIPs checks the addresses of the file on this host.
func examineVirtualIPs(ctx context.Context, c daemon.StoreConfig, snap election.Snapshot, add addFinding) {
	levels := map[vip.Level]string{vip.LevelOK: levelOK, vip.LevelWarning: levelWarning, vip.LevelFailure: levelFailure}
	held := func(a vip.Address) string {
		return holderOf(snap, addressHosts(snap.Controllers, nil), a.Prefix.String())
	}
	if c.Follows {
		held = func(vip.Address) string {
			if snap.Active == nil || snap.Active.State != election.StateServing {
				return ""
			}
			return snap.Active.Controller
		}
	}
	for _, f := range vip.Examine(ctx, c.VirtualIPs, held) {
		add(levels[f.Level], "virtual IP", "%s: %s", f.Address.Prefix, f.Text)
	}
}
