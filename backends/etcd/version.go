package etcd

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/tanist/tanist/election"
)

// Server is one etcd member, as it describes itself.
type Server struct {
	Endpoint  string
	Version   string // "3.7.3"; empty if it did not answer
	ClusterID uint64 // of the etcd cluster
	Leader    bool   // it is etcd's own leader
	Err       error  // why it did not answer
}

// Versions asks every endpoint, side by side. It returns one entry per endpoint, in the order of the configuration.
func (s *Store) Versions(ctx context.Context) []Server {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	servers := make([]Server, len(s.endpoints))
	var asking sync.WaitGroup
	for i, e := range s.endpoints {
		asking.Go(func() {
			servers[i].Endpoint = e.url
			resp, err := e.client.Status(ctx, e.url)
			if err != nil {
				servers[i].Err = e.describe(&attempt{}, err)
				return
			}
			servers[i].Version, servers[i].ClusterID = resp.Version, resp.Header.ClusterId
			servers[i].Leader = resp.Leader == resp.Header.MemberId
		})
	}
	asking.Wait()
	return servers
}

// Warning returns what is wrong with the servers in plain sentences, or "" if nothing is known to be. Servers that do not
// answer are left out.
func (s *Store) Warning(ctx context.Context) string {
	return warning(s.Versions(ctx))
}

func warning(servers []Server) string {
	var says []string
	var first *Server
	for i, server := range servers {
		if server.Err != nil {
			continue
		}
		if fixed := needs(server.Version); fixed != "" {
			says = append(says, fmt.Sprintf("etcd %s at %s has known bugs that end leases early or renew leases that are gone; upgrade it to %s or later.", server.Version, server.Endpoint, fixed))
		}
		if first == nil {
			first = &servers[i]
		} else if first.ClusterID != server.ClusterID {
			says = append(says, fmt.Sprintf("%s and %s belong to different etcd clusters; endpoints must list the members of one.", first.Endpoint, server.Endpoint))
		}
	}
	return strings.Join(says, " ")
}

// The first releases of a line with the lease fixes (etcd-io/etcd#20590, backports #20615 and #20616).
var fixes = [...]struct{ minor, patch int }{{4, 38}, {5, 23}, {6, 5}}

// needs returns the version with the fixes that version lacks, or "" if it has them or can't be understood.
func needs(version string) string {
	version, _, _ = strings.Cut(version, "-")
	parts := strings.Split(version, ".")
	if len(parts) != 3 {
		return ""
	}
	var n [3]int
	for i, p := range parts {
		var err error
		if n[i], err = strconv.Atoi(p); err != nil {
			return ""
		}
	}
	if n[0] != 3 {
		return ""
	}
	for _, f := range fixes {
		if n[1] == f.minor && n[2] < f.patch || n[1] < fixes[0].minor {
			return fmt.Sprintf("3.%d.%d", f.minor, f.patch)
		}
	}
	return ""
}

var _ interface {
	election.Backend
	Follow(context.Context) <-chan election.Sighting
	Close() error
} = (*Store)(nil)
