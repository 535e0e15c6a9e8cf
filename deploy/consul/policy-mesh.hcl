# The token of the mesh proxy beside a controller. It speaks in the name of the service, so it is worth as much as the service is.
# Write your service's name for "orders".

service "orders" {
  policy = "write"
}

service_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
