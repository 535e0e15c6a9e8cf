# For clusters in which other instances share the active controller's service name (consul.service.name): the mesh resolves the
# service to the active controller. With Tanist's registration alone it changes nothing.
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

# A connection to a former active controller is useless.
ConnectTimeout = "2s"
