// Package prometheus holds alerts for Prometheus (alerts.yml), their tests (alerts_test.yml, for promtool) and an example of what to
// scrape (prometheus.yml). Its own tests check that the alerts, and the dashboard in deploy/grafana, name only metrics and
// labels that Tanist has, so that none of them is silent for a spelling.
package prometheus
