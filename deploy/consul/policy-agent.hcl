# The token of an agentwatch: reads its cluster, writes its own status, and can neither touch the role key nor end a
# controller's lease. Write your cluster's name for "orders".

key_prefix "tanist/orders/" {
  policy = "read"
}

key_prefix "tanist/orders/agents/" {
  policy = "write"
}

# An agentwatch's sessions are on a catalog entry of their own.
node "tanistagents-orders" {
  policy = "write"
}

session "tanistagents-orders" {
  policy = "write"
}
