// Package private starts a private PostgreSQL server for tests and for the lab. It needs the
// server's programs (Debian: postgresql-15) and nothing else, and touches no cluster of the host.
//
// # What is guaranteed
//
// The server listens on a free port of 127.0.0.1 and on a Unix socket in its own directory. It
// checks passwords (SCRAM) over TCP; over the socket the operating-system user that started the
// server is the superuser. [Server.Stop] ends every process of the server and removes its files. If
// the starting process dies before that, the kernel tells the server to quit, and only its files
// under the temporary directory remain.
//
// # What is not guaranteed
//
// Durability: fsync is off unless requested. A crash of the server ([Server.Crash]) loses nothing,
// a crash of the host may. The server is not hardened either: it is meant for one host, one user
// and one afternoon.
//
// # Usage
//
//	server, err := private.Start(ctx, private.Options{})
//	if err != nil {
//		return err
//	}
//	defer server.Stop()
//	conn, err := pgx.Connect(ctx, server.SuperDSN("postgres"))
package private
