// Package config reads the configuration files of tanist: one YAML document per process, of one [Kind].
//
// Reading is strict, and reports everything that is wrong at once, each as file:line:column with what is wrong and what to
// do: unknown keys (with the key that was probably meant), wrong types, missing and impossible values. Nothing is
// used of a file that has a problem.
//
// Values come, each overriding the ones before, from the defaults, the native variables of the store's own tools
// (ETCDCTL_ENDPOINTS, CONSUL_HTTP_ADDR, …), the file, TANIST_* variables (lease.ttl is TANIST_LEASE_TTL), and --set flags. Secrets are
// never in a file: every one is named by a *_file key.
package config
