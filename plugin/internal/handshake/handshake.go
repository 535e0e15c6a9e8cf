// Package handshake has what a plugin and its host agree on before the first message: the version of
// the protocol, the cookie that marks a process as a plugin, and the descriptor that ends it with its
// host. None of it may change within a version of the protocol.
package handshake

import goplugin "github.com/hashicorp/go-plugin"

const (
	// Version is the version of the protocol. A plugin may serve several, and the host uses the
	// highest that both know.
	Version = 1
	// Name is the one name under which go-plugin knows all services.
	Name = "tanist"
	// LifelineVariable has the number of the descriptor whose end means that the host is gone.
	LifelineVariable = "TANIST_PLUGIN_LIFELINE"
	// FilePrefix is what the name of a plugin's file begins with.
	FilePrefix = "tanist-plugin-"
)

// Config is go-plugin's handshake. The cookie is no secret: it only keeps people from starting a
// plugin by hand.
func Config() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{ProtocolVersion: Version, MagicCookieKey: "TANIST_PLUGIN", MagicCookieValue: "tanist.plugin"}
}
