# The token of `tanist haproxy`: follows the active and nothing more. Write your cluster's name for "orders".

key "tanist/orders/active" {
  policy = "read"
}
