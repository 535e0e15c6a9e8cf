# The token of an operator who uses the tanist command: reads everything of a cluster, and may make requests (switchover, pause, standby, confirm-dead).
# It cannot claim, release or end a lease; the sidecars carry out the requests. Replace "orders" with your cluster's name.

key_prefix "tanist/orders/" {
  policy = "read"
}

key "tanist/orders/request" {
  policy = "write"
}

key "tanist/orders/pause" {
  policy = "write"
}

key "tanist/orders/standby" {
  policy = "write"
}

key "tanist/orders/dead" {
  policy = "write"
}

key_prefix "tanist/orders/members/" {
  policy = "write"
}

# The records that `tanist audit` shows.
key_prefix "tanist/orders/audit/" {
  policy = "write"
}

# To see the leases and the registration with Consul's own tools.
node "tanist-orders" {
  policy = "read"
}

session "tanist-orders" {
  policy = "read"
}

service "orders" {
  policy = "read"
}
