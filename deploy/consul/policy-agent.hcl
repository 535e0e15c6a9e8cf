# The token of an agentwatch: reads its cluster and writes its own status, and can neither write the role key nor end a
# controller's lease. Replace "orders" with your cluster's name.

key_prefix "tanist/orders/" {
  policy = "read"
}

key_prefix "tanist/orders/agents/" {
  policy = "write"
}

# An agentwatch's sessions are on their own catalog entry.
node "tanistagents-orders" {
  policy = "write"
}

session "tanistagents-orders" {
  policy = "write"
}
