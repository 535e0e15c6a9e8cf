# Settings for every Consul agent and server that make DNS the virtual URL. Put this file into the agent's configuration
# directory.

dns_config {
  # Ask the leader. A server that is cut off from the others would keep answering with the last active controller it knew.
  allow_stale = false

  # Neither answers nor negative answers may be cached.
  node_ttl = "0s"
  service_ttl { "*" = "0s" }
  soa { min_ttl = 0 }
}

performance {
  # With the default of 5, Consul takes five times as long to replace a dead leader, longer than the default lease profile lasts.
  raft_multiplier = 1
}
