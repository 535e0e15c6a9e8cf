package health

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// GRPC returns a check that succeeds if addr ("host:port") reports the service as SERVING with the
// gRPC health protocol (grpc.health.v1.Health/Check). An empty service means the server as a whole.
// A nil secure means plain text. Each run opens its own connection and uses no proxy.
func GRPC(addr, service string, secure *TLSOptions) (func(ctx context.Context) error, error) {
	host, err := secured(addr, secure)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		creds := insecure.NewCredentials()
		if secure != nil {
			c, err := secure.Config(host)
			if err != nil {
				return fmt.Errorf("cannot ask %s: %v", addr, err)
			}
			creds = credentials.NewTLS(c)
		}
		conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds), grpc.WithNoProxy(),
			grpc.WithDisableServiceConfig(), grpc.WithDisableRetry())
		if err != nil {
			return fmt.Errorf("cannot ask %s: %v", addr, err)
		}
		defer func() { _ = conn.Close() }()
		resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
		switch {
		case status.Code(err) == codes.Unimplemented:
			return fmt.Errorf("%s does not speak the gRPC health protocol", addr)
		case status.Code(err) == codes.NotFound:
			return fmt.Errorf("%s does not know the service %q", addr, service)
		case status.Code(err) == codes.DeadlineExceeded:
			return context.DeadlineExceeded
		case err != nil:
			return fmt.Errorf("cannot ask %s: %s", addr, status.Convert(err).Message())
		case resp.GetStatus() != healthpb.HealthCheckResponse_SERVING:
			return fmt.Errorf("status %s", resp.GetStatus())
		}
		return nil
	}, nil
}

// secured checks the address and the TLS options of a check, and returns the address's host.
func secured(addr string, secure *TLSOptions) (host string, err error) {
	if err := validAddr(addr); err != nil {
		return "", err
	}
	if secure != nil {
		if err := secure.Validate(); err != nil {
			return "", err
		}
	}
	host, _, err = net.SplitHostPort(addr)
	return host, err
}
