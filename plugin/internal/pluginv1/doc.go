// Package pluginv1 is the protocol tanist.plugin.v1 in Go. Everything else in it is generated from
// plugin/proto by `task proto`; the comments of the messages and services are there too.
package pluginv1
