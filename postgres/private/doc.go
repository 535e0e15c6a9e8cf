// Package private starts a PostgreSQL server of one's own: for tests, and for the lab. It needs the server's programs
// (Debian: postgresql-15) and nothing else; no cluster of the host is touched.
//
// # What is guaranteed
//
// The server listens on a free port of 127.0.0.1 and on a Unix socket in its own directory. Passwords are checked
// (SCRAM) over TCP; over the socket the operating-system user that started the server is the superuser. [Server.Stop] ends every
// process of the server and removes every file of it. If the starting process dies without calling it, the kernel
// tells the server to quit; only its files under the temporary directory are left then.
//
// # What is not guaranteed
//
// Durability: unless asked for, fsync is off. A crash of the server ([Server.Crash]) loses nothing, a crash of the host may.
// Nor is it a hardened server: it is meant for one host, one user and one afternoon.
package private
