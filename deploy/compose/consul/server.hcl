# A server of the lab.
server           = true
bootstrap_expect = 3
client_addr      = "0.0.0.0"

ui_config {
  enabled = true
}
