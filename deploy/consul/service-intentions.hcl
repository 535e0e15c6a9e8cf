# Who may connect to the active through the mesh. Write your own services for "web".
#
#   consul config write service-intentions.hcl

Kind = "service-intentions"
Name = "orders"

Sources = [
  {
    Name   = "web"
    Action = "allow"
  }
]
