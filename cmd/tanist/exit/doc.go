// Package exit defines how a command of Tanist ends: with an error that carries the exit code
// scripts rely on.
//
// An error without its own code gets that of its kind (an unusable configuration, denied access, a
// name that is taken) or [Failure].
//
// Usage: a command returns exit.Errorf(exit.Usage, "unknown argument %q", arg); main prints the
// error and exits with its [Code]. The codes never change their meaning; package main documents
// them in the manual page.
package exit
