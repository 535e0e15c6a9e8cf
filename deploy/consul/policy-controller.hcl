# The token of a sidecar: everything in its own cluster, nothing else. Replace "orders" with the names of your cluster and
# your service.

key_prefix "tanist/orders/" {
  policy = "write"
}

# Leases are sessions on the catalog entry tanist-<cluster>, which the first sidecar registers. If you register it yourself
# (PUT /v1/catalog/register {"Node": "tanist-orders", "Address": "127.0.0.1"}), you can remove the node rule.
node "tanist-orders" {
  policy = "write"
}

session "tanist-orders" {
  policy = "write"
}

# consul.service.name, and with connect: true its mesh proxy.
service "orders" {
  policy = "write"
}

service "orders-sidecar-proxy" {
  policy = "write"
}
