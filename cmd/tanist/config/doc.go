// Package config reads the configuration files of tanist: one YAML document per process, of one
// [Kind].
//
// Reading is strict and reports all problems at once, each as file:line:column with the problem and
// what to do: unknown keys (with the probably intended key), wrong types, missing and impossible
// values. A file with a problem is not used at all.
//
// Values come from these sources, each overriding the previous ones: the defaults, the native
// variables of the store's own tools (ETCDCTL_ENDPOINTS, CONSUL_HTTP_ADDR, …), the file, TANIST_*
// variables (lease.ttl is TANIST_LEASE_TTL), and --set flags. A file contains no secrets: a *_file
// key names the file of each.
//
// The package starts nothing and connects to nothing; package daemon does.
//
// # Usage
//
//	l, err := config.Load(config.Options{File: "ctl-a.yml", Want: config.KindController})
//	if err != nil {
//		return err // config.Problems: one line per problem, or the file is unreadable
//	}
//	timing, err := l.Controller.Timing()
package config
