# What every Consul agent and server should be told, so that DNS can be the virtual URL. Put it into the agent's
# configuration directory.

dns_config {
  # Ask the leader. A server that was cut off from the others would go on answering with the last active that it knew.
  allow_stale = false

  # Answers and "there is none" are not to be remembered.
  node_ttl = "0s"
  service_ttl { "*" = "0s" }
  soa { min_ttl = 0 }
}

performance {
  # The default of 5 makes Consul take five times as long to replace a dead leader, which the default lease profile does not outlive.
  raft_multiplier = 1
}
