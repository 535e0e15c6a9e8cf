// Package packages has what the deb, rpm and apk packages are made of, and tests their scripts.
//
// scripts/release makes the packages; scripts/package-trial installs, upgrades and removes one under a
// real systemd. The scripts guarantee that an installation starts nothing, that an upgrade replaces each
// sidecar by one that adopts its running controller, and that a removal is a planned move. They do not
// restart agentwatches, which would restart their agents. It contains no code for other packages to
// import.
package packages
