package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/tanist/tanist/election"
)

func TestVirtualIPsAreShownWhereTheyAreAndWhyNot(t *testing.T) {
	status := func(name, state, why string) election.Controller {
		return election.Controller{Name: name, Incarnation: "x", VirtualIPs: []election.VirtualIP{
			{Address: "10.0.0.100/24", Interface: "eth0", State: state, Why: why},
		}}
	}
	frozen := status("ctl-a", "held", "") // its word is older than the takeover
	now := election.Snapshot{
		Active:      &election.Active{Controller: "ctl-b", Term: 8, State: election.StateServing},
		Controllers: []election.Controller{frozen, status("ctl-b", "contested", "02:00:00:00:00:01 answers too\x1b[2J"), status("ctl-c", "absent", "interface eth0 is down")},
	}
	hosts := addressHosts(now.Controllers, nil)
	if got := holderOf(now, hosts, "10.0.0.100/24"); got != "ctl-b" {
		t.Errorf("the holder is %q, not the one with the lease", got)
	}
	var table, words bytes.Buffer
	virtualIPTable(&table, hosts)
	explainVirtualIPs(&words, now, hosts)
	for _, want := range []string{
		"ctl-a has 10.0.0.100/24 on eth0.", "ctl-b has 10.0.0.100/24 on eth0, but not alone: 02:00:00:00:00:01 answers too",
		"ctl-c can't take 10.0.0.100/24 on eth0: interface eth0 is down.",
	} {
		if !strings.Contains(words.String(), want) {
			t.Errorf("explain does not say %q:\n%s", want, words.String())
		}
	}
	if strings.Contains(words.String()+table.String(), "\x1b") || strings.Count(table.String(), "\n") != 4 {
		t.Errorf("the table is\n%s", table.String())
	}
	words.Reset()
	absent := []election.Controller{status("ctl-a", "absent", ""), status("ctl-b", "absent", "")}
	explainVirtualIPs(&words, election.Snapshot{Controllers: absent}, addressHosts(absent, nil))
	if words.String() != "No host has 10.0.0.100/24.\n" {
		t.Errorf("explain prints %q", words.String())
	}
	table.Reset()
	if virtualIPTable(&table, addressHosts(absent, nil)); table.Len() > 0 {
		t.Errorf("an address that is nowhere is shown: %s", table.String())
	}
}

func TestVirtualIPsOfHostsWithoutASidecarAreShown(t *testing.T) {
	host := func(name, controller, state string) election.VIPHost {
		return election.VIPHost{Name: name, Controller: controller, Incarnation: "x", VirtualIPs: []election.VirtualIP{
			{Address: "10.0.0.100/24", Interface: "eth0", State: state},
		}}
	}
	now := election.Snapshot{Active: &election.Active{Controller: "ctl-b", Term: 8, State: election.StateServing}}
	hosts := addressHosts(nil, []election.VIPHost{host("vip-2", "ctl-b", "held"), host("vip-1", "ctl-a", "held"), host("vip-3", "ctl-c", "absent")})
	if got := holderOf(now, hosts, "10.0.0.100/24"); got != "vip-2 (for ctl-b)" {
		t.Errorf("the holder is %q, not the host of the active controller", got)
	}
	var table, words bytes.Buffer
	virtualIPTable(&table, hosts)
	explainVirtualIPs(&words, now, hosts)
	if want := "vip-2 (for ctl-b) has 10.0.0.100/24 on eth0.\nvip-1 (for ctl-a) has 10.0.0.100/24 on eth0.\n"; words.String() != want {
		t.Errorf("explain prints %q, want %q", words.String(), want)
	}
	if !strings.Contains(table.String(), "vip-2 (for ctl-b)  eth0") || strings.Contains(table.String(), "vip-3") {
		t.Errorf("the table is\n%s", table.String())
	}
	var events []string
	vipHostChanges([]election.VIPHost{host("vip-1", "ctl-a", "held")}, []election.VIPHost{host("vip-1", "ctl-a", "absent"), host("vip-2", "ctl-b", "held")},
		func(kind, _ string, _ election.Term, format string, args ...any) {
			events = append(events, kind+" "+fmt.Sprintf(format, args...))
		})
	want := "virtual-ip-absent vip-1 (for ctl-a) does not have 10.0.0.100/24; virtual-ip-held vip-2 (for ctl-b) has 10.0.0.100/24 on eth0"
	if got := strings.Join(events, "; "); got != want {
		t.Errorf("the events are %q, want %q", got, want)
	}
}

func TestVirtualIPChangesAreEvents(t *testing.T) {
	with := func(state string) election.Controller {
		return election.Controller{Name: "ctl-a", VirtualIPs: []election.VirtualIP{{Address: "10.0.0.100/24", Interface: "eth0", State: state}}}
	}
	for _, c := range []struct {
		was, is election.Controller
		want    string
	}{
		{election.Controller{}, with("absent"), ""},
		{with("absent"), with("held"), "virtual-ip-held ctl-a has 10.0.0.100/24 on eth0"},
		{with("held"), with("held"), ""},
		{with("held"), with("absent"), "virtual-ip-absent ctl-a does not have 10.0.0.100/24"},
		{with("held"), with("contested"), "virtual-ip-contested ctl-a has 10.0.0.100/24 on eth0, but not alone"},
		{with("absent"), with("foreign"), "virtual-ip-foreign ctl-a: 10.0.0.100/24 on eth0 is foreign"},
	} {
		got := ""
		virtualIPChanges("ctl-a", c.was.VirtualIPs, c.is.VirtualIPs, func(kind, _ string, _ election.Term, format string, args ...any) {
			got = kind + " " + fmt.Sprintf(format, args...)
		})
		if got != c.want {
			t.Errorf("%v → %v: %q, want %q", c.was.VirtualIPs, c.is.VirtualIPs, got, c.want)
		}
	}
}
