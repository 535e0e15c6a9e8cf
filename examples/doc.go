// Package examples has a recipe for each of some well-known programs: how to put it under Tanist, and
// why so. Each directory has the configuration files, a README, and a test that runs the README's
// commands word for word with the program's Debian package.
//
// The package itself only gives the recipes to `tanist config init --recipe NAME`, so that what the
// command prints is what the tests run.
//
// # Usage
//
//	text, err := examples.Recipe("mosquitto")
package examples
