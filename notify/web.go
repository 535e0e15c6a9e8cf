package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/tanist/tanist/election"
)

// Form is what a receiver of webhooks takes.
type Form string

// The forms.
const (
	FormJSON         Form = "webhook"      // a [Notice] in JSON, or a template
	FormSlack        Form = "slack"        // an incoming webhook
	FormTeams        Form = "teams"        // a workflow's webhook: an adaptive card
	FormAlertmanager Form = "alertmanager" // its API: …/api/v2/alerts
	FormNtfy         Form = "ntfy"         // the URL of a topic
)

// Web sends notices by HTTP.
type Web struct {
	Form      Form
	URL       string
	URLFile   string // instead of URL, which may be a secret; read for each notice
	TokenFile string // for Authorization: Bearer; read for each notice
	Headers   map[string]string
	Template  string // of FormJSON: text/template over a [Notice], with the function json
	CAFile    string // read for each notice; empty: the system's
}

// Check returns an error if the configuration is unusable. It begins with the key.
func (w *Web) Check() error {
	if (w.URL == "") == (w.URLFile == "") {
		return errors.New("url: give exactly one of url, url_file")
	}
	if w.URL != "" {
		if err := checkURL(w.URL); err != nil {
			return fmt.Errorf("url: %v", err)
		}
	}
	if w.Template != "" && w.Form != FormJSON {
		return fmt.Errorf("template: it is of the kind %s", FormJSON)
	}
	n := Notice{ID: "test", Event: EventTest, Severity: Info, Cluster: "orders", Text: "a \"test\"\n", At: time.Now()}
	if _, _, err := w.body(n); err != nil {
		return fmt.Errorf("template: %v", err)
	}
	return nil
}

func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return errors.New("it is not an http or https URL with a host and without a password") // it may be a secret
	}
	return nil
}

// Send implements the method of [Channel].
func (w *Web) Send(ctx context.Context, n Notice) error {
	body, headers, err := w.body(n)
	if err != nil {
		return &Rejected{err}
	}
	target := w.URL
	if w.URLFile != "" {
		if target, err = secret(w.URLFile); err != nil {
			return err
		}
	}
	if err := checkURL(target); err != nil {
		return fmt.Errorf("the URL of the receiver: %v", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return errors.New("the URL of the receiver cannot be used")
	}
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	for name, value := range w.Headers {
		req.Header.Set(name, value)
	}
	if w.TokenFile != "" {
		token, err := secret(w.TokenFile)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client, err := w.client()
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err // without the URL, which may be a secret
		}
		return fmt.Errorf("cannot reach the receiver: %w", err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // for the error
	return accepted(resp, string(text))
}

// client returns a client for one notice. A redirection is not followed, because the request has
// secrets.
func (w *Web) client() (*http.Client, error) {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	if w.CAFile != "" {
		trust, err := election.OpenTrust(election.TrustFiles{CAFile: w.CAFile})
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig = trust.Config()
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

// accepted converts the response of a receiver.
func accepted(resp *http.Response, text string) error {
	if resp.StatusCode/100 == 2 {
		return nil
	}
	err := fmt.Errorf("the receiver responds %d: %.200q", resp.StatusCode, strings.TrimSpace(text))
	again := []int{http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests}
	if resp.StatusCode/100 != 5 && !slices.Contains(again, resp.StatusCode) {
		return &Rejected{err}
	}
	if seconds, parse := strconv.Atoi(resp.Header.Get("Retry-After")); parse == nil && seconds > 0 {
		return &Delayed{err, time.Duration(min(seconds, 3600)) * time.Second}
	}
	return err
}

// body returns what is sent.
func (w *Web) body(n Notice) (body []byte, headers map[string]string, err error) {
	headers = map[string]string{"Content-Type": "application/json", "User-Agent": "tanist"}
	switch w.Form {
	case FormSlack:
		text := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(fmt.Sprintf("%s\n%s", n.Title(), n.Text))
		body, err = json.Marshal(map[string]string{"text": text})
	case FormTeams:
		body, err = json.Marshal(card(n))
	case FormAlertmanager:
		body, err = json.Marshal([]any{alert(n)})
	case FormNtfy:
		headers["Content-Type"] = "text/plain; charset=utf-8"
		headers["Title"] = n.Title()
		headers["Priority"] = map[Severity]string{Info: "3", Warning: "4", Critical: "5"}[n.Severity]
		return []byte(n.Text), headers, nil
	default:
		if w.Template == "" {
			body, err = json.Marshal(n)
			break
		}
		var t *template.Template
		t, err = template.New("template").Funcs(template.FuncMap{"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		}}).Option("missingkey=error").Parse(w.Template)
		var filled bytes.Buffer
		if err == nil {
			err = t.Execute(&filled, n)
		}
		body = filled.Bytes()
	}
	return body, headers, err
}

// card returns what Teams takes.
func card(n Notice) any {
	color := map[Severity]string{Info: "Default", Warning: "Warning", Critical: "Attention"}[n.Severity]
	if n.Resolved {
		color = "Good"
	}
	return map[string]any{"type": "message", "attachments": []any{map[string]any{
		"contentType": "application/vnd.microsoft.card.adaptive",
		"content": map[string]any{
			"$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard", "version": "1.4",
			"body": []any{
				map[string]any{"type": "TextBlock", "text": n.Title(), "weight": "Bolder", "color": color, "wrap": true},
				map[string]any{"type": "TextBlock", "text": n.Text, "wrap": true},
			},
		},
	}}}
}

const (
	momentsFire = 10 * time.Minute // how long Alertmanager shows what is a moment
	statesFire  = 24 * time.Hour   // and a state, unless it is resolved
)

// alert returns an alert of Alertmanager's API. It has an explicit end, because nobody repeats it as
// Prometheus does.
func alert(n Notice) any {
	var name strings.Builder
	for word := range strings.SplitSeq(n.Event, "-") {
		name.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	labels := map[string]string{"alertname": "Tanist" + name.String(), "cluster": n.Cluster, "severity": string(n.Severity)}
	if n.Name != "" {
		labels["controller"] = n.Name
	}
	a := map[string]any{"labels": labels, "annotations": map[string]string{"summary": n.Text}, "startsAt": n.At.Format(time.RFC3339Nano)}
	switch {
	case n.Resolved:
		delete(a, "startsAt")
		a["endsAt"] = n.At.Format(time.RFC3339Nano)
	case n.Lasts:
		a["endsAt"] = n.At.Add(statesFire).Format(time.RFC3339Nano)
	default:
		a["endsAt"] = n.At.Add(momentsFire).Format(time.RFC3339Nano)
	}
	return a
}

// secret reads a file that holds a secret.
func secret(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("cannot read the secret: %v", err)
	}
	text := strings.TrimSpace(string(b))
	if text == "" || strings.ContainsAny(text, "\r\n") {
		return "", fmt.Errorf("cannot read the secret: %s does not have exactly one line", file)
	}
	return text, nil
}
