# The agent of a host: only programs of the host itself may use it.
client_addr = "127.0.0.1"
