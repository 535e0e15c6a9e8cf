# Who may connect to the active controller. Everybody else may not: the default is deny.
Kind = "service-intentions"
Name = "lab"

Sources = [
  {
    Name   = "agt"
    Action = "allow"
  },
  {
    Name   = "user"
    Action = "allow"
  }
]
