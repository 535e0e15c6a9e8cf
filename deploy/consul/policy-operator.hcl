# The token of a person with the tanist command: sees everything of a cluster, and may ask (switchover, pause, settings). It
# can't claim, release or end a lease; the sidecars carry out what is asked. Write your cluster's name for "orders".

key_prefix "tanist/orders/" {
  policy = "read"
}

key "tanist/orders/request" {
  policy = "write"
}

key "tanist/orders/pause" {
  policy = "write"
}

key "tanist/orders/settings" {
  policy = "write"
}

# To see the leases and the registration with Consul's own means.
node "tanist-orders" {
  policy = "read"
}

session "tanist-orders" {
  policy = "read"
}

service "orders" {
  policy = "read"
}
