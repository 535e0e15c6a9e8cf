// Image writes Tanist's container image, from binaries that the Go toolchain has built, into one
// archive. It needs no container engine, no registry and no root, and is run by scripts/image.
//
// The archive has two readers. It is an OCI archive with an image for each architecture, which
// registry tools push. And it has the manifest of `docker save` for the first architecture, so that
// every version of `docker load` reads it.
//
// The image contains the static binary, an empty /tmp and /run/tanist, and a file of users with the
// one that it runs as. There is no shell and no C library. The health check is `tanist is-live`, which
// asks the process itself. The same input gives the same bytes.
//
// It does not sign or push anything.
//
// # Usage
//
//	go run ./deploy/image -version v1.2.3 -o image.tar amd64=bin/amd64/tanist arm64=bin/arm64/tanist
package main
