# What DNS needs to answer under a default policy of deny. Give it to the anonymous token, or to the agents' tokens.dns.

node_prefix "" {
  policy = "read"
}

service_prefix "" {
  policy = "read"
}

query_prefix "" {
  policy = "read"
}
