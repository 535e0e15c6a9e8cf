# The token of `tanist vip`: reads its cluster and writes its own status, and can neither write the role key nor end a
# controller's lease. Replace "orders" with your cluster's name.

key_prefix "tanist/orders/" {
  policy = "read"
}

key_prefix "tanist/orders/vips/" {
  policy = "write"
}

# Its sessions are on the catalog entry of those that hold no controller's lease.
node "tanistagents-orders" {
  policy = "write"
}

session "tanistagents-orders" {
  policy = "write"
}
