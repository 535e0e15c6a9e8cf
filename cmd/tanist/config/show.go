package config

import (
	"embed"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed reference
var references embed.FS

// Reference returns the annotated configuration file of a kind: every key, with its default where it has one.
func Reference(kind Kind) (string, error) {
	b, err := references.ReadFile("reference/" + string(kind) + ".yml")
	if err != nil || !slices.Contains(Kinds(), kind) {
		return "", fmt.Errorf("%q is not a kind: one of controller, agent, haproxy", kind)
	}
	return string(b), nil
}

// Value is one value that is in force.
type Value struct {
	Path   string
	Text   string
	Origin string
}

// hides tells whether a variable for the program is to be shown. Secrets belong into files, but a program may want one there.
func hides(name string) bool {
	name = strings.ToUpper(name)
	return slices.ContainsFunc([]string{"PASS", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "DSN"}, func(word string) bool { return strings.Contains(name, word) })
}

// Values returns every value in force, in the order of the reference. Tanist's own secrets are in files; of the program's
// variables, those that look like secrets are shown as "***".
func (l *Loaded) Values() []Value {
	var all []Value
	add := func(path, text string) {
		origin, ok := l.Origin[path]
		for at := path; !ok && at != ""; { // an item of a list is from where the list is from
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
		case v.Kind() == reflect.Map:
			m, _ := reflect.TypeAssert[map[string]string](v) // the only kind of map there is
			for _, key := range slices.Sorted(maps.Keys(m)) {
				text := strconv.Quote(m[key])
				if hides(key) {
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
	return all
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
	default:
		return nil, fmt.Errorf("%q is not a kind: one of controller, agent, haproxy", kind)
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
			if words := strings.Fields(f.Tag.Get("one")); len(words) > 0 {
				of["enum"] = words
			}
			properties[key] = of
		}
		return map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	case t.Kind() == reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(fresh(t.Elem()))}
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

// comments returns the comments at the ends of a reference's lines, by the dotted path of the key in their line.
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
