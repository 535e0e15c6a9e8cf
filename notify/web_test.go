package notify

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var down = Notice{
	ID: "down-7", Event: EventDown, Severity: Critical, Cluster: "orders", Name: "ctl-a", Term: 7, Lasts: true,
	Text: `nobody is active; the last was "ctl-a" <7>`, At: at,
}

// TestReceiversGetTheirForm: what is sent to each kind of receiver.
func TestReceiversGetTheirForm(t *testing.T) {
	over := down
	over.ID, over.Resolved, over.Text = "down-7-over", true, "it is over"
	moment := Notice{ID: "takeover-8", Event: EventTakeover, Severity: Info, Cluster: "orders", Name: "ctl-b", Term: 8, Text: "ctl-b is active", At: at}
	for name, c := range map[string]struct {
		form     Form
		template string
		n        Notice
		want     string
	}{
		"webhook": {FormJSON, "", down, `{"id":"down-7","event":"down","severity":"critical","cluster":"orders","name":"ctl-a","term":7,` +
			`"text":"nobody is active; the last was \"ctl-a\" \u003c7\u003e","at":"2026-11-28T12:00:00Z","resolved":false,"lasts":true}`},
		"template": {FormJSON, `{"content": {{ json .Title }}, "term": {{ .Term }}}`, down, `{"content": "orders: down", "term": 7}`},
		"slack":    {FormSlack, "", down, `{"text":"orders: down\nnobody is active; the last was \"ctl-a\" \u0026lt;7\u0026gt;"}`},
		"ntfy":     {FormNtfy, "", down, `nobody is active; the last was "ctl-a" <7>`},
		"alertmanager, a state": {FormAlertmanager, "", down, `[{"annotations":{"summary":"nobody is active; the last was \"ctl-a\" \u003c7\u003e"},"endsAt":"2026-11-29T12:00:00Z",` +
			`"labels":{"alertname":"TanistDown","cluster":"orders","controller":"ctl-a","severity":"critical"},"startsAt":"2026-11-28T12:00:00Z"}]`},
		"alertmanager, over": {FormAlertmanager, "", over, `[{"annotations":{"summary":"it is over"},"endsAt":"2026-11-28T12:00:00Z",` +
			`"labels":{"alertname":"TanistDown","cluster":"orders","controller":"ctl-a","severity":"critical"}}]`},
		"alertmanager, a moment": {FormAlertmanager, "", moment, `[{"annotations":{"summary":"ctl-b is active"},"endsAt":"2026-11-28T12:10:00Z",` +
			`"labels":{"alertname":"TanistTakeover","cluster":"orders","controller":"ctl-b","severity":"info"},"startsAt":"2026-11-28T12:00:00Z"}]`},
	} {
		var body string
		var header http.Header
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			body, header = string(b), r.Header
		}))
		dir := t.TempDir()
		write(t, filepath.Join(dir, "url"), server.URL+"\n")
		write(t, filepath.Join(dir, "token"), "geheim\n")
		w := &Web{Form: c.form, Template: c.template, URLFile: filepath.Join(dir, "url"), TokenFile: filepath.Join(dir, "token"), Headers: map[string]string{"X-Team": "ops"}}
		if err := w.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := w.Send(t.Context(), c.n); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		server.Close()
		if body != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, body, c.want)
		}
		if header.Get("Authorization") != "Bearer geheim" || header.Get("X-Team") != "ops" {
			t.Errorf("%s: %v", name, header)
		}
		if c.form == FormNtfy && (header.Get("Title") != "orders: down" || header.Get("Priority") != "5") {
			t.Errorf("%s: %v", name, header)
		}
		if c.form != FormNtfy && !json.Valid([]byte(body)) {
			t.Errorf("%s: it is not JSON", name)
		}
	}
	b, err := json.Marshal(card(down))
	if err != nil || !strings.Contains(string(b), `"contentType":"application/vnd.microsoft.card.adaptive"`) || !strings.Contains(string(b), `"text":"orders: down"`) {
		t.Errorf("%s, %v", b, err)
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestWhatReceiversRespond: what is accepted, retried, retried later, and not retried. No error has
// the URL, which may be a secret.
func TestWhatReceiversRespond(t *testing.T) {
	for name, c := range map[string]struct {
		status   int
		header   string
		ok       bool
		rejected bool
		after    time.Duration
	}{
		"accepted":          {200, "", true, false, 0},
		"accepted, too":     {204, "", true, false, 0},
		"a bad request":     {400, "", false, true, 0},
		"a wrong token":     {403, "", false, true, 0},
		"a redirection":     {302, "", false, true, 0},
		"too many":          {429, "7", false, false, 7 * time.Second},
		"too many, unsaid":  {429, "", false, false, 0},
		"broken":            {500, "", false, false, 0},
		"broken for a time": {503, "120", false, false, 2 * time.Minute},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", c.header)
			w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, "what is wrong")
		}))
		err := (&Web{Form: FormJSON, URL: server.URL + "/geheim"}).Send(t.Context(), down)
		server.Close()
		_, rejected := errors.AsType[*Rejected](err)
		delayed, _ := errors.AsType[*Delayed](err)
		if (err == nil) != c.ok || rejected != c.rejected || (delayed != nil) != (c.after > 0) || delayed != nil && delayed.After != c.after {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "geheim") || !strings.Contains(err.Error(), "what is wrong")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&Web{Form: FormJSON, URL: "http://127.0.0.1:1/geheim"}).Send(t.Context(), down); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("nobody listens: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&Web{Form: FormJSON, URL: "http://127.0.0.1:1/"}).Send(ended, down); err == nil {
		t.Error("it ignores its context")
	}
}

// TestUnusableChannels: what the check of a file refuses.
func TestUnusableChannels(t *testing.T) {
	for name, c := range map[string]struct {
		channel interface{ Check() error }
		want    string
	}{
		"no URL":                     {&Web{Form: FormSlack}, "url: give exactly one of url, url_file"},
		"a URL with a password":      {&Web{Form: FormSlack, URL: "https://a:b@h/"}, "url: it is not an http or https URL"},
		"a URL of nothing":           {&Web{Form: FormSlack, URL: "ftp://h/"}, "url: it is not"},
		"a template for Slack":       {&Web{Form: FormSlack, URL: "https://h/", Template: "x"}, "template: it is of the kind webhook"},
		"a template that is broken":  {&Web{Form: FormJSON, URL: "https://h/", Template: "{{ .Text "}, "template: "},
		"a template of a lost field": {&Web{Form: FormJSON, URL: "https://h/", Template: "{{ .Nothing }}"}, "template: "},
		"a server without a port":    {&Mail{Server: "h", From: "a@b", To: []string{"a@b"}}, "server: "},
		"nobody's mail":              {&Mail{Server: "h:25", From: "a", To: []string{"a@b"}}, "from: "},
		"mail to nobody":             {&Mail{Server: "h:25", From: "a@b"}, "to: it is empty"},
		"mail to no address":         {&Mail{Server: "h:25", From: "a@b", To: []string{"c@d", "x\r\nBcc: e@f"}}, "to[1]: "},
		"a user without a password":  {&Mail{Server: "h:25", From: "a@b", To: []string{"c@d"}, Username: "u"}, "username: "},
		"a password in clear":        {&Mail{Server: "h:25", From: "a@b", To: []string{"c@d"}, Username: "u", PasswordFile: "/f", TLS: MailPlain}, "tls: with none"},
	} {
		if err := c.channel.Check(); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
