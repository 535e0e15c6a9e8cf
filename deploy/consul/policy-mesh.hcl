# The token of the mesh proxy next to a controller. It acts for the service, so protect it like the service itself.
# Replace "orders" with your service's name.

service "orders" {
  policy = "write"
}

service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
