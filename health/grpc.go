package health

import (
	"context"
	"crypto/tls"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// GRPC is the check that the service answers SERVING on the gRPC health protocol (grpc.health.v1.Health/Check) of addr
// ("host:port"). An empty service means the server as a whole. A nil tlsConfig means plain text. Each run makes a
// connection of its own and uses no proxy.
func GRPC(addr, service string, tlsConfig *tls.Config) (func(ctx context.Context) error, error) {
	if err := validAddr(addr); err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if tlsConfig != nil {
		creds = credentials.NewTLS(tlsConfig)
	}
	return func(ctx context.Context) error {
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
