package etcd

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tanist/tanist/election"
)

// Server describes one etcd member, as reported by itself.
type Server struct {
	Endpoint  string
	Version   string // "3.7.3"; empty if it did not respond
	ClusterID uint64 // of the etcd cluster
	Leader    bool   // it is the leader of the etcd cluster
	Alarms    string // its alarms, as etcd words them
	Size      int64  // size of its database in bytes
	InUse     int64  // the part of Size that a defragmentation would keep
	Quota     int64  // the size at which it refuses writes; 2 GiB unless it reports another
	Revision  int64
	Err       error // why it did not respond
}

// Versions queries every endpoint concurrently. It returns one entry per endpoint, in the order of
// the configuration.
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
			servers[i].Alarms = strings.Join(resp.Errors, ", ")
			servers[i].Size, servers[i].InUse, servers[i].Revision = resp.DbSize, resp.DbSizeInUse, resp.Header.Revision
			servers[i].Quota = cmp.Or(resp.DbSizeQuota, defaultQuota)
		})
	}
	asking.Wait()
	return servers
}

// Warning returns the known problems of the servers in plain sentences, or "". It skips servers
// that do not respond.
func (s *Store) Warning(ctx context.Context) string {
	servers := s.Versions(ctx)
	return strings.TrimSpace(warning(servers) + " " + s.uncompacted(ctx, servers))
}

const (
	defaultQuota = 2 << 30
	// manyRevisions is the length from which a never compacted history is worth a warning: etcd's
	// own periodic compaction starts after an hour.
	manyRevisions = 50_000
)

// uncompacted warns of an etcd that keeps its whole history: one day its quota is used up, and it
// refuses writes.
func (s *Store) uncompacted(ctx context.Context, servers []Server) string {
	i := slices.IndexFunc(servers, func(v Server) bool { return v.Err == nil && v.Revision >= s.manyRevisions })
	if i < 0 {
		return ""
	}
	v := servers[i]
	_, err := hedge(ctx, s, "read the first revision", func(ctx context.Context, c *clientv3.Client) (struct{}, error) {
		_, err := c.Get(ctx, s.root+election.ActiveKey, clientv3.WithRev(1), clientv3.WithKeysOnly())
		return struct{}{}, err
	})
	if err != nil {
		return "" // it was compacted, or that is unknown
	}
	days := float64(v.Quota-v.Size) / (float64(max(v.InUse, 1)) / float64(v.Revision)) / (5 * 86400)
	return fmt.Sprintf("etcd at %s has never compacted its history of %d revisions, and accepts no writes once its %d MiB are full: "+
		"one cluster with the profile fast fills the rest in about %.0f days; start etcd with --auto-compaction-mode=periodic --auto-compaction-retention=1h.",
		v.Endpoint, v.Revision, v.Quota>>20, max(days, 0))
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
		if strings.Contains(server.Alarms, "NOSPACE") {
			says = append(says, fmt.Sprintf("etcd at %s raised the alarm NOSPACE and accepts no writes, so nobody can claim: compact and defragment it, then `etcdctl alarm disarm`.", server.Endpoint))
		} else if strings.Contains(server.Alarms, "alarm:") {
			says = append(says, fmt.Sprintf("etcd at %s raised an alarm: %s.", server.Endpoint, server.Alarms))
		}
		if server.Quota > 0 && server.Size > server.Quota/5*4 {
			says = append(says, fmt.Sprintf("the database of etcd at %s has %d of %d MiB: compact and defragment it before it is full and accepts no writes.", server.Endpoint, server.Size>>20, server.Quota>>20))
		}
		if first == nil {
			first = &servers[i]
		} else if first.ClusterID != server.ClusterID {
			says = append(says, fmt.Sprintf("%s and %s belong to different etcd clusters; endpoints must list the members of one.", first.Endpoint, server.Endpoint))
		}
	}
	return strings.Join(says, " ")
}

// The first releases of a line with the lease fixes (etcd-io/etcd#20590, backports #20615 and
// #20616).
var fixes = [...]struct{ minor, patch int }{{4, 38}, {5, 23}, {6, 5}}

// needs returns the fixed version that version should be upgraded to, or "" if it is fixed or can't
// be parsed.
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
