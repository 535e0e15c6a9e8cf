package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/tanist/tanist/notify"
)

// checkNotify checks the keys and files of channels. Package notify checks the rest.
func (d *decoder) checkNotify(all []Notify) {
	names := map[string]bool{}
	for i, n := range all {
		path := fmt.Sprintf("notify[%d]", i)
		d.name(path+".name", n.Name)
		if names[n.Name] {
			d.wrong(path+".name", "%q is the name of another channel", n.Name)
		}
		names[n.Name] = true
		for j, event := range n.Events {
			d.among(fmt.Sprintf("%s.events[%d]", path, j), event, notify.Events()...)
		}
		if n.Timeout <= 0 || n.Timeout > notify.MaxTimeout {
			d.wrong(path+".timeout", "%v is not between 1ms and %v", n.Timeout, notify.MaxTimeout)
		}
		for _, name := range slices.Sorted(maps.Keys(n.Headers)) {
			if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(n.Headers[name]) {
				d.wrong(path+".headers."+name, "it can't be a header of a request")
			}
		}
		d.checkNotifyKeys(path, n)
		d.readable(path+".url_file", n.URLFile)
		d.readable(path+".token_file", n.TokenFile)
		d.readable(path+".password_file", n.PasswordFile)
		d.readable(path+".ca_file", n.CAFile)
		if n.Kind == "command" {
			d.executable(path+".command", n.Command, "", "")
		}
	}
}

// checkNotifyKeys reports keys that have no effect.
func (d *decoder) checkNotifyKeys(path string, n Notify) {
	const web = "webhook slack teams alertmanager ntfy"
	for _, k := range []struct {
		key, kinds string
		set        bool
	}{
		{"url", web, n.URL != ""},
		{"url_file", web, n.URLFile != ""},
		{"token_file", web, n.TokenFile != ""},
		{"headers", web, len(n.Headers) > 0},
		{"template", "webhook", n.Template != ""},
		{"ca_file", web + " email", n.CAFile != ""},
		{"server", "email", n.Server != ""},
		{"from", "email", n.From != ""},
		{"to", "email", len(n.To) > 0},
		{"username", "email", n.Username != ""},
		{"password_file", "email", n.PasswordFile != ""},
		{"tls", "email", n.TLS != notify.MailStartTLS},
		{"command", "command", len(n.Command) > 0},
	} {
		if k.set && !slices.Contains(strings.Fields(k.kinds), n.Kind) {
			d.wrong(path+"."+k.key, "it has no effect with kind %s, only with %s", n.Kind, strings.ReplaceAll(k.kinds, " ", ", "))
		}
	}
}
