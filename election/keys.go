package election

import (
	"fmt"
	"strings"
)

// The names of all keys of a cluster. They are relative to the cluster, as in [Keys]; see
// [ClusterPath]. No other package spells a key. Operators, scripts and access rules rely on the
// names, so a change must be made here and in docs/design.md.
const (
	// ActiveKey is the role key, an [Active] bound to the lease. The owner of that lease is the
	// holder.
	ActiveKey = "active"
	// URLKey is the plain URL of the active controller, bound to the lease. It exists only while
	// the controller serves.
	URLKey = "url"
	// BeatKey is written with every renewal of a reign with a beat, and bound to the lease. Only
	// its version matters.
	BeatKey = "beat"
	// TermKey is the permanent [Breadcrumb].
	TermKey = "term"
	// HeirKey is the [Heir], bound to the lease of the heir's future reign.
	HeirKey = "heir"
	// RequestKey is an operator's [Request], permanent until it is carried out, dropped or
	// withdrawn.
	RequestKey = "request"
	// PauseKey is the [Pause], permanent until an operator ends it.
	PauseKey = "pause"
	// StandbyKey is the [Standbys], permanent: who must not become active.
	StandbyKey = "standby"
	// DeadKey is an operator's [Dead], permanent. Only the latest is kept.
	DeadKey = "dead"
)

// Prefixes of the keys that exist once per controller, agent, tanist vip or term.
const (
	// RoleWordPrefix is the prefix of the plain role words.
	RoleWordPrefix = "role/"
	// ControllerPrefix is the prefix of the [Controller] statuses.
	ControllerPrefix = "controllers/"
	// AgentPrefix is the prefix of the [Agent] statuses.
	AgentPrefix = "agents/"
	// VIPPrefix is the prefix of the [VIPHost] statuses.
	VIPPrefix = "vips/"
	// HistoryPrefix is the prefix of the permanent [History].
	HistoryPrefix = "history/"
	// MemberPrefix is the prefix of the permanent [Member] records.
	MemberPrefix = "members/"
	// AuditPrefix is the prefix of the [Audit] records of what operators asked for.
	AuditPrefix = "audit/"
	// NoticePrefix is the prefix of the records of who sends or has sent a notice, per channel.
	NoticePrefix = "notices/"
)

// RootPath is the path of all clusters, without slashes around it.
const RootPath = "tanist"

// ClusterPath returns the prefix of a cluster's keys in the store, below root: "tanist/orders/".
func ClusterPath(root, cluster string) string {
	return strings.TrimSuffix(root, "/") + "/" + cluster + "/"
}

// RoleWordKey returns the key of a controller's role word. It is bound to the lease of its reign or of
// its presence.
func RoleWordKey(controller string) string { return RoleWordPrefix + controller }

// ControllerKey returns the key of a controller's status, bound to the lease of its presence.
func ControllerKey(controller string) string { return ControllerPrefix + controller }

// MemberKey returns the key of a controller's [Member] record.
func MemberKey(controller string) string { return MemberPrefix + controller }

// AuditKey returns the key of an [Audit] record. Lexical order is the order of time.
func AuditKey(a Audit) string { return fmt.Sprintf("%s%013d-%s", AuditPrefix, a.At.UnixMilli(), a.ID) }

// NoticeKey returns the key of a notice of a channel. Before it is sent, it is bound to the lease of
// the member that sends it; after that it is permanent.
func NoticeKey(channel, id string) string { return NoticePrefix + channel + "/" + id }

// AgentKey returns the key of an agent's status, bound to the lease of its agentwatch.
func AgentKey(agent string) string { return AgentPrefix + agent }

// VIPKey returns the key of the status of one tanist vip, bound to the lease of its presence.
func VIPKey(name string) string { return VIPPrefix + name }

// HistoryKey returns the key of the history of a reign. Lexical order is the order of terms.
func HistoryKey(t Term) string { return fmt.Sprintf("%s%010d", HistoryPrefix, t) }
