// Package prometheus holds alerts for Prometheus (alerts.yml), their tests (alerts_test.yml, for
// promtool) and an example scrape configuration (prometheus.yml).
//
// Its tests check that the alerts, and the dashboard in deploy/grafana, name only metrics and
// labels that Tanist has, because a misspelt one would keep an alert silent. They do not check that
// the thresholds suit your cluster.
//
// Usage: add alerts.yml to rule_files and the targets of prometheus.yml to scrape_configs, then run
// `promtool test rules alerts_test.yml`.
package prometheus
