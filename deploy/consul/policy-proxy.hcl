# The token of `tanist haproxy`: follows the active controller, nothing else. Replace "orders" with your cluster's name.

key "tanist/orders/active" {
  policy = "read"
}
