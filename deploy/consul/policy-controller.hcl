# The token of a sidecar: everything of its own cluster, nothing else. Write your cluster's name and your service's name
# for "orders".

key_prefix "tanist/orders/" {
  policy = "write"
}

# Leases are sessions on the catalog entry tanist-<cluster>, which the first sidecar registers. If you register it yourself
# (PUT /v1/catalog/register {"Node": "tanist-orders", "Address": "127.0.0.1"}), the rule on node can go.
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
