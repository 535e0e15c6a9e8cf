package config

import (
	"cmp"
	"embed"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tanist/tanist/election"
)

//go:embed reference
var references embed.FS

// Reference returns the annotated configuration file of a kind: every key, with its default where
// it has one.
func Reference(kind Kind) (string, error) {
	b, err := references.ReadFile("reference/" + string(kind) + ".yml")
	if err != nil || !slices.Contains(Kinds(), kind) {
		return "", fmt.Errorf("%q is not a kind: one of controller, agent, haproxy, vip", kind)
	}
	return string(b), nil
}

// Value is one value in force.
type Value struct {
	Path   string
	Text   string
	Origin string
}

// hides reports whether to hide a program's variable. Secrets belong in files, but a program may
// want one in a variable.
func hides(name string) bool {
	name = strings.ToUpper(name)
	return slices.ContainsFunc([]string{"PASS", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "DSN"}, func(word string) bool { return strings.Contains(name, word) })
}

// Values returns every value in force, in the order of the reference. Tanist's own secrets are in
// files; program variables that look like secrets appear as "***".
func (l *Loaded) Values() []Value {
	var all []Value
	add := func(path, text string) {
		origin, ok := l.Origin[path]
		for at := path; !ok && at != ""; { // an item has the source of its list
			cut := strings.LastIndexAny(at, "[.")
			if cut < 0 {
				break
			}
			at = at[:cut]
			if strings.HasSuffix(path, "]") || strings.Contains(path, "].") {
				origin, ok = l.Origin[at]
			}
		}
		if !ok {
			origin = "default"
		}
		all = append(all, Value{path, text, origin})
	}
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		switch {
		case v.Type() == durationType:
			add(path, time.Duration(v.Int()).String())
		case v.Kind() == reflect.Struct:
			for f, field := range v.Fields() {
				if key := f.Tag.Get("yaml"); key != "" {
					walk(field, join(path, key))
				}
			}
		case v.Kind() == reflect.Pointer:
			if !v.IsNil() {
				walk(v.Elem(), path)
			}
		case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
			items := make([]string, v.Len())
			for i := range items {
				items[i] = strconv.Quote(v.Index(i).String())
			}
			add(path, "["+strings.Join(items, ", ")+"]")
		case v.Kind() == reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i), fmt.Sprintf("%s[%d]", path, i))
			}
		case v.Kind() == reflect.Map && v.Type().Elem().Kind() == reflect.Struct:
			for _, key := range slices.SortedFunc(slices.Values(v.MapKeys()), func(a, b reflect.Value) int { return cmp.Compare(a.String(), b.String()) }) {
				walk(v.MapIndex(key), join(path, key.String()))
			}
		case v.Kind() == reflect.Map:
			m, _ := reflect.TypeAssert[map[string]string](v) // the only other kind of map there is
			for _, key := range slices.Sorted(maps.Keys(m)) {
				text := strconv.Quote(m[key])
				if hides(key) && !strings.HasSuffix(key, "_file") {
					text = "***"
				}
				add(join(path, key), text)
			}
		case v.Kind() == reflect.String:
			add(path, strconv.Quote(v.String()))
		default:
			add(path, fmt.Sprint(v.Interface()))
		}
	}
	walk(reflect.ValueOf(l.Root()).Elem(), "")
	if l.Kind == KindController {
		l.Controller.fromProfile(all)
	}
	return all
}

// fromProfile replaces what nobody set about the lease by what the profile gives, which is in
// force.
func (c *Controller) fromProfile(all []Value) {
	timing, err := c.Timing()
	if err != nil {
		return // no such profile: there is nothing to take from
	}
	times := map[string]time.Duration{
		"lease.ttl": timing.TTL, "lease.validity": timing.Validity, "lease.renew_every": timing.RenewEvery, "lease.stop_budget": timing.StopBudget,
		"lease.silence": timing.Silence,
	}
	for i, v := range all {
		if d, ok := times[v.Path]; ok && v.Text == "0s" {
			all[i].Text, all[i].Origin = d.String(), "profile "+timing.Profile
		}
		if v.Path == "lease.leader_change" && timing.LeaderChange && !c.Lease.LeaderChange {
			all[i].Text, all[i].Origin = "true", "profile "+timing.Profile
		}
	}
}

// Changed returns the paths whose values differ between two configurations of a kind, in the order
// of the reference.
func Changed(old, now *Loaded) []string {
	before := map[string]string{}
	for _, v := range old.Values() {
		before[v.Path] = v.Text
	}
	var changed []string
	for _, v := range now.Values() {
		if text, was := before[v.Path]; !was || text != v.Text {
			changed = append(changed, v.Path)
		}
		delete(before, v.Path)
	}
	return append(changed, slices.Sorted(maps.Keys(before))...)
}

// LogLevel returns the log level, for any kind of configuration.
func (l *Loaded) LogLevel() string {
	switch l.Kind {
	case KindController:
		return l.Controller.Log.Level
	case KindAgent:
		return l.Agent.Log.Level
	case KindVIP:
		return l.VIP.Log.Level
	default:
		return l.HAProxy.Log.Level
	}
}

// Schema returns the JSON Schema (2020-12) of a kind.
func Schema(kind Kind) (map[string]any, error) {
	var root any
	switch kind {
	case KindController:
		root = NewController()
	case KindAgent:
		root = NewAgent()
	case KindHAProxy:
		root = NewHAProxy()
	case KindVIP:
		root = NewVIP()
	default:
		return nil, fmt.Errorf("%q is not a kind: one of controller, agent, haproxy, vip", kind)
	}
	reference, err := Reference(kind)
	if err != nil {
		return nil, err
	}
	s := schemaOf(reflect.ValueOf(root).Elem())
	for path, text := range comments(reference) {
		if at := property(s, path); at != nil {
			at["description"] = text
		}
	}
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "tanist " + string(kind)
	s["required"] = []string{"kind", "cluster"}
	s["properties"].(map[string]any)["kind"] = map[string]any{"const": string(kind)}
	return s, nil
}

func schemaOf(v reflect.Value) map[string]any {
	t := v.Type()
	switch {
	case t == durationType:
		s := map[string]any{"type": "string", "pattern": `^[0-9.]+(ns|us|µs|ms|s|m|h)([0-9.]+(ns|us|µs|ms|s|m|h))*$`}
		if d := time.Duration(v.Int()); d > 0 {
			s["default"] = d.String()
		}
		return s
	case t.Kind() == reflect.Pointer:
		return schemaOf(fresh(t.Elem()))
	case t.Kind() == reflect.Struct:
		properties := map[string]any{}
		for f, field := range v.Fields() {
			key := f.Tag.Get("yaml")
			if key == "" {
				continue
			}
			of := schemaOf(field)
			if words := strings.Fields(f.Tag.Get("one")); slices.Contains(words, anyPlugin) {
				of["pattern"] = "^(" + strings.ReplaceAll(strings.Join(words, "|"), anyPlugin, election.PluginPrefix+".+") + ")$"
			} else if len(words) > 0 {
				of["enum"] = words
			}
			properties[key] = of
		}
		return map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	case t == envFromType:
		name := map[string]any{"type": "string", "pattern": envRule.String()}
		return map[string]any{"anyOf": []any{map[string]any{"enum": []string{"all", "none"}}, map[string]any{"type": "array", "items": name}}, "default": "all"}
	case t == commandType:
		text := map[string]any{"type": "string"}
		return map[string]any{"anyOf": []any{map[string]any{"type": "array", "items": text}, text}}
	case t.Kind() == reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(fresh(t.Elem()))}
	case t.Kind() == reflect.Map && t.Elem().Kind() == reflect.Struct:
		return map[string]any{"type": "object", "additionalProperties": schemaOf(fresh(t.Elem()))}
	case t.Kind() == reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string"}}
	case t.Kind() == reflect.Bool:
		return map[string]any{"type": "boolean", "default": v.Bool()}
	case t.Kind() == reflect.Int:
		return map[string]any{"type": "integer", "default": v.Int()}
	default:
		s := map[string]any{"type": "string"}
		if v.String() != "" {
			s["default"] = v.String()
		}
		return s
	}
}

// comments returns the trailing comments of a reference by the dotted path of the key on their
// line.
func comments(reference string) map[string]string {
	all := map[string]string{}
	var path []string
	var depths []int
	for line := range strings.Lines(reference) {
		line = strings.TrimRight(strings.Replace(line, "#: ", "", 1), "\n")
		text, comment, _ := strings.Cut(line, " # ")
		bare := strings.TrimLeft(text, " ")
		key, _, isKey := strings.Cut(bare, ":")
		if !isKey || strings.HasPrefix(bare, "#") || strings.HasPrefix(bare, "-") {
			continue
		}
		depth := len(text) - len(bare)
		for len(depths) > 0 && depths[len(depths)-1] >= depth {
			path, depths = path[:len(path)-1], depths[:len(depths)-1]
		}
		path, depths = append(path, key), append(depths, depth)
		if comment = strings.TrimSpace(comment); comment != "" {
			all[strings.Join(path, ".")] = comment
		}
	}
	return all
}

// property returns the schema of a dotted path, or nil.
func property(s map[string]any, path string) map[string]any {
	for key := range strings.SplitSeq(path, ".") {
		properties, ok := s["properties"].(map[string]any)
		if !ok {
			return nil
		}
		if s, ok = properties[key].(map[string]any); !ok {
			return nil
		}
	}
	return s
}
