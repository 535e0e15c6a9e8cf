# The agents' own token: their catalog entries, and the service of sidecar.hcl. A real set-up has one token per node.
node_prefix "" {
  policy = "write"
}

agent_prefix "" {
  policy = "read"
}

service_prefix "" {
  policy = "read"
}

service "lab-sidecar" {
  policy = "write"
}
