package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
)

// HTTPOptions are what an HTTP check may need beyond the URL. The zero value is a plain GET.
type HTTPOptions struct {
	Header http.Header // sent with each request; "Host" sets the host asked for
	Expect []int       // status codes that mean well; empty: 200 to 399
	TLS    *tls.Config // nil: the system's certificate authorities
}

// HTTP is the check that a GET of rawURL is answered with a good status. Each run makes a connection of its own, since a program that
// serves old connections but takes no new ones is not well; it uses no proxy and follows no redirect.
func HTTP(rawURL string, o HTTPOptions) (func(ctx context.Context) error, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("cannot read the URL %q: %v", rawURL, parseCause(err))
	}
	if _, err := PortOf(rawURL); err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: o.TLS, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	shown := u.Redacted()
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
		if err != nil {
			return fmt.Errorf("cannot ask %s: %v", shown, parseCause(err))
		}
		for k, v := range o.Header {
			req.Header[http.CanonicalHeaderKey(k)] = v
		}
		if h := req.Header.Get("Host"); h != "" {
			req.Host = h
		}
		req.Header.Set("User-Agent", "tanist-health")
		resp, err := client.Do(req)
		if err != nil {
			if ue, ok := errors.AsType[*url.Error](err); ok {
				err = ue.Err
			}
			return fmt.Errorf("cannot ask %s: %v", shown, cause(err))
		}
		defer resp.Body.Close()
		// An answer whose body does not come is none; a body without end is not read to it.
		if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 256<<10)); err != nil {
			return fmt.Errorf("cannot read the answer of %s: %v", shown, cause(err))
		}
		if !expected(resp.StatusCode, o.Expect) {
			return fmt.Errorf("status %s", resp.Status)
		}
		return nil
	}, nil
}

func expected(status int, want []int) bool {
	if len(want) == 0 {
		return status >= 200 && status < 400
	}
	return slices.Contains(want, status)
}
