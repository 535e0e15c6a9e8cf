package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

// tcpProbe returns a function that succeeds if it can open a TCP connection to addr ("host:port").
// It closes the connection at once without sending anything. Only its context bounds it.
func tcpProbe(addr string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("cannot connect to %s: %v", addr, cause(err))
		}
		defer conn.Close()
		if conn.LocalAddr().String() == conn.RemoteAddr().String() {
			// Nobody listens, and the kernel chose the port being dialed as the client's port: a
			// TCP connection to itself.
			return fmt.Errorf("cannot connect to %s: nobody listens there", addr)
		}
		return nil
	}
}

// TCP returns a check that succeeds if addr ("host:port") accepts connections and, unless secure is
// nil, completes a TLS handshake.
func TCP(addr string, secure *TLSOptions) (func(ctx context.Context) error, error) {
	host, err := secured(addr, secure)
	if err != nil {
		return nil, err
	}
	if secure == nil {
		return tcpProbe(addr), nil
	}
	return func(ctx context.Context) error {
		c, err := secure.Config(host)
		if err != nil {
			return fmt.Errorf("cannot connect to %s: %v", addr, err)
		}
		conn, err := (&tls.Dialer{Config: c}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("cannot connect to %s: %v", addr, cause(err))
		}
		return conn.Close()
	}, nil
}

// PortOf returns the startup port of a controller's URL as "host:port"; the default port is 80 for
// http and 443 for https. The URL must be absolute, http or https, and have a host.
func PortOf(rawURL string) (hostport string, err error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", fmt.Errorf("cannot read the URL %q: %v", rawURL, parseCause(err))
	}
	if u.Hostname() == "" {
		return "", fmt.Errorf("cannot read the URL %q: it has no host", rawURL)
	}
	port := u.Port()
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("cannot read the URL %q: it begins with neither http:// nor https://", rawURL)
	case port == "" && u.Scheme == "http":
		port = "80"
	case port == "":
		port = "443"
	}
	addr := net.JoinHostPort(u.Hostname(), port)
	if err := validAddr(addr); err != nil {
		return "", fmt.Errorf("cannot read the URL %q: %v", rawURL, err)
	}
	return addr, nil
}

// The pace of WaitPort: it starts at pollMin and grows so that polling adds a twentieth to the time
// waited.
const (
	pollMin  = 2 * time.Millisecond
	pollMax  = 100 * time.Millisecond
	pollPart = 20
	pollTry  = time.Second // one connection attempt; a dropped packet must not use up the whole time
)

// WaitPort waits until addr ("host:port") accepts a connection, and returns nil. If ctx ends first,
// it returns an error with the outcome of the last attempt. It polls every 2 ms at first and every
// 100 ms at last, so that it waits at most 5 % (never more than 100 ms) longer than the port took
// to open.
func WaitPort(ctx context.Context, addr string) error { return waitFor(ctx, addr, tcpProbe(addr)) }

func waitFor(ctx context.Context, addr string, probe func(context.Context) error) error {
	began := time.Now()
	var last error
	for {
		try, cancel := context.WithTimeout(ctx, pollTry)
		err := probe(try)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // an attempt that ctx cut short is less informative than the previous one
		}
		pause := min(max(time.Since(began)/pollPart, pollMin), pollMax)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s does not answer after %v: %w; last attempt: %v",
				addr, time.Since(began).Round(time.Millisecond), context.Cause(ctx), last)
		}
	}
}

func validAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not host:port", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q has no port from 1 to 65535", addr)
	}
	if host == "" {
		return fmt.Errorf("%q has no host", addr)
	}
	return nil
}

// cause strips the parts of a message that would repeat addr.
func cause(err error) error {
	var errno syscall.Errno
	var dns *net.DNSError
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.As(err, &dns):
		return fmt.Errorf("cannot resolve %s: %s", dns.Name, dns.Err)
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("no answer in time")
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		if op.Timeout() {
			return errors.New("no answer in time")
		}
		return op.Err
	}
	return err
}

func parseCause(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}
