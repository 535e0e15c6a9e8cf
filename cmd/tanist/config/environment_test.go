package config

import (
	"slices"
	"strings"
	"testing"
)

// TestNoChildInheritsWhatTanistReads: tokens and passwords of the sidecar are the sidecar's.
func TestNoChildInheritsWhatTanistReads(t *testing.T) {
	environ := []string{
		"PATH=/bin", "HOME=/root", "ORDERS=1", "CONSUL_HTTP_TOKEN=x", "CONSUL_HTTP_ADDR=x", "ETCDCTL_PASSWORD=x", "PGPASSWORD=x", "PGPASSFILE=x",
		"TANIST_LEASE_TTL=3s", "NOTIFY_SOCKET=/run/x", "WATCHDOG_USEC=1", "LISTEN_FDS=1", "CREDENTIALS_DIRECTORY=/run/x",
	}
	for _, test := range []struct {
		from EnvFrom
		want string
	}{
		{nil, "PATH HOME ORDERS"}, {EnvFrom{"all"}, "PATH HOME ORDERS"}, {EnvFrom{"none"}, "PATH"}, {EnvFrom{"ORDERS", "PGPASSWORD"}, "ORDERS"},
	} {
		var names []string
		for _, kv := range test.from.Inherited(environ) {
			name, _, _ := strings.Cut(kv, "=")
			names = append(names, name)
		}
		if got := strings.Join(names, " "); got != test.want {
			t.Errorf("%v: %s, want %s", test.from, got, test.want)
		}
	}
	if got := ForCommand(environ); slices.ContainsFunc(got, func(kv string) bool { return strings.HasPrefix(kv, "CONSUL_") }) || !slices.Contains(got, "PGPASSWORD=x") {
		t.Errorf("tanist run: %v", got)
	}
}
