package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// HTTPOptions configures an HTTP check beyond its URL. The zero value is a plain GET.
type HTTPOptions struct {
	Method string      // empty: GET
	Header http.Header // sent with each request; "Host" sets the requested host
	Expect []int       // status codes that count as success; empty: 200 to 399
	Body   string      // the response must contain this text; empty: any response
	TLS    TLSOptions
}

// maxBody is how much of a response is read.
const maxBody = 256 << 10

// HTTP returns a check that succeeds if a request to rawURL returns a good status and body. Each
// run opens its own connection, because a program that serves old connections but accepts no new
// ones is unhealthy. It uses no proxy and follows no redirect.
func HTTP(rawURL string, o HTTPOptions) (func(ctx context.Context) error, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("cannot read the URL %q: %v", rawURL, parseCause(err))
	}
	if _, err := PortOf(rawURL); err != nil {
		return nil, err
	}
	if err := o.TLS.Validate(); err != nil {
		return nil, err
	}
	if o.Method == "" {
		o.Method = http.MethodGet
	}
	if _, err := http.NewRequest(o.Method, rawURL, nil); err != nil { //nolint:noctx // it is not sent
		return nil, fmt.Errorf("cannot ask with method %q: %v", o.Method, parseCause(err))
	}
	return func(ctx context.Context) error { return request(ctx, u, o) }, nil
}

func request(ctx context.Context, u *url.URL, o HTTPOptions) error {
	shown := u.Redacted()
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	if u.Scheme == "https" {
		var err error
		if transport.TLSClientConfig, err = o.TLS.Config(u.Hostname()); err != nil {
			return fmt.Errorf("cannot ask %s: %v", shown, err)
		}
	}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, o.Method, u.String(), nil)
	if err != nil {
		return fmt.Errorf("cannot ask %s: %v", shown, parseCause(err))
	}
	req.Header.Set("User-Agent", "tanist-health")
	for k, v := range o.Header {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	if h := req.Header.Get("Host"); h != "" {
		req.Host = h
	}
	resp, err := client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return fmt.Errorf("cannot ask %s: %v", shown, cause(err))
	}
	defer resp.Body.Close()
	// A response without its body is a failure. An endless body is not read to the end.
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	switch {
	case err != nil:
		return fmt.Errorf("cannot read the answer of %s: %v", shown, cause(err))
	case !expected(resp.StatusCode, o.Expect):
		return fmt.Errorf("status %s", resp.Status)
	case o.Body != "" && !strings.Contains(string(body), o.Body):
		return fmt.Errorf("status %s, and %q is not in the response", resp.Status, o.Body)
	}
	return nil
}

func expected(status int, want []int) bool {
	if len(want) == 0 {
		return status >= 200 && status < 400
	}
	return slices.Contains(want, status)
}
