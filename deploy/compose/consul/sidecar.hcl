# On a controller's host: the sidecar as a service with a check, for Consul's UI. The check passes while the controller is
# active, or could become active; its output has the reason if not. Nothing in Tanist depends on it.
service {
  name = "lab-sidecar"
  port = 8710

  check {
    name     = "active, or fit to become active"
    http     = "http://127.0.0.1:8710/ready"
    interval = "2s"
    timeout  = "1s"
  }
}
