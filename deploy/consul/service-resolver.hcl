# For clusters in which other instances share the name of the active (consul.service.name): whoever asks the mesh for the
# service gets the active. With Tanist's registration alone it changes nothing.
#
#   consul config write service-resolver.hcl

Kind          = "service-resolver"
Name          = "orders"
DefaultSubset = "active"

Subsets = {
  active = {
    Filter      = "Service.Meta.role == active"
    OnlyPassing = true
  }
}

# A connection to a former active is of no use to anybody.
ConnectTimeout = "2s"
