package vip

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

func TestAnnouncementsClaimAndProbesDoNot(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, text := range []string{"10.0.0.100", "fd00::100"} {
		ip := netip.MustParseAddr(text)
		frames, err := announcements(mac, ip)
		if err != nil || len(frames) == 0 {
			t.Fatal(err)
		}
		for _, f := range frames {
			c, ok := parseClaim(f)
			if !ok || c.ip != ip || c.mac.String() != mac.String() {
				t.Errorf("%s is announced as %v", ip, c)
			}
		}
		frames, err = probe(mac, ip)
		if err != nil || len(frames) != 1 {
			t.Fatal(err)
		}
		if c, ok := parseClaim(frames[0]); ok {
			t.Errorf("a probe for %s claims %v", ip, c)
		}
	}
}

func FuzzClaim(f *testing.F) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, text := range []string{"10.0.0.100", "fd00::100"} {
		frames, err := announcements(mac, netip.MustParseAddr(text))
		if err != nil {
			f.Fatal(err)
		}
		for _, frame := range frames {
			f.Add(frame)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, ok := parseClaim(b); ok && (!c.ip.IsValid() || len(c.mac) != 6) {
			t.Errorf("%x was read as %v", b, c)
		}
	})
}
