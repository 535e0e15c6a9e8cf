# Which services may connect to the active controller through the mesh. Replace "web" with your own services.
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
