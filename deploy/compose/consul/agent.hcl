# What every agent of the lab has: TLS, default deny.
data_dir             = "/lab-data"
log_level            = "WARN"
disable_update_check = true
retry_join           = ["consul-1", "consul-2", "consul-3"]
retry_interval       = "1s"

ports {
  http     = -1
  https    = 8501
  grpc     = -1
  grpc_tls = 8503
  serf_wan = -1
}

connect {
  enabled = true
}

tls {
  defaults {
    ca_file         = "/run/secrets/consul_ca.pem"
    cert_file       = "/run/secrets/consul_cert.pem"
    key_file        = "/run/secrets/consul_key.pem"
    verify_incoming = false
    verify_outgoing = true
  }
  internal_rpc {
    verify_incoming        = true
    verify_server_hostname = true
  }
}

acl {
  enabled        = true
  default_policy = "deny"
}
