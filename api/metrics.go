package api

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Sample is one value of a metric at the time of a scrape.
type Sample struct {
	Name    string
	Help    string
	Counter bool // otherwise a gauge
	Labels  map[string]string
	Value   float64
}

// Gauges collects the result of samples at each scrape. It adds the constant labels to every
// sample.
type Gauges struct {
	Constant map[string]string
	Samples  func() []Sample
}

// Describe implements [prometheus.Collector]. It sends nothing, which makes the collector an
// unchecked one.
func (g Gauges) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (g Gauges) Collect(to chan<- prometheus.Metric) {
	for _, s := range g.Samples() {
		names := slices.Sorted(maps.Keys(s.Labels))
		values := make([]string, len(names))
		for i, n := range names {
			values[i] = s.Labels[n]
		}
		kind := prometheus.GaugeValue
		if s.Counter {
			kind = prometheus.CounterValue
		}
		to <- prometheus.MustNewConstMetric(prometheus.NewDesc(s.Name, s.Help, names, g.Constant), kind, s.Value, values...)
	}
}
