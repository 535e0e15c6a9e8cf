package vip

import "runtime/debug"

// cgo is set if this binary was built with it: then a keeper can't drop capabilities on all
// threads.
var cgo = func() string {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "CGO_ENABLED" && s.Value == "1" {
			return s.Value
		}
	}
	return ""
}()
