# The token of the proxies next to agents, users and the stranger. A real set-up has one token per service.
service "agt" {
  policy = "write"
}

service "user" {
  policy = "write"
}

service "stranger" {
  policy = "write"
}

service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
