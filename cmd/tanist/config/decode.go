package config

import (
	"bytes"
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Problem is one problem of a configuration.
type Problem struct {
	Where string // file:line:column, or the variable or flag
	Key   string // dotted path; empty for the document itself
	What  string // the problem, and what to do about it

	line, column int
}

func (p Problem) String() string {
	if p.Key == "" {
		return p.Where + ": " + p.What
	}
	return p.Where + ": " + p.Key + ": " + p.What
}

// Problems is every problem of a configuration. It is an error.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, 0, len(p)+1)
	for _, problem := range p {
		lines = append(lines, problem.String())
	}
	word := "problems"
	if len(p) == 1 {
		word = "problem"
	}
	return strings.Join(append(lines, fmt.Sprintf("%d %s", len(p), word)), "\n")
}

// decoder fills a struct from the syntax tree of a YAML document. The library's own decoder would
// stop at the first problem.
type decoder struct {
	file     string
	away     bool // the file may be another host's: do not check this host's files and users
	problems Problems
	root     reflect.Type               // of the kind; nil before it is known
	where    map[string]*token.Position // every key and item that was read, by path
	origin   map[string]string
	anchors  map[string]ast.Node
}

func (d *decoder) problem(at *token.Position, key, format string, args ...any) {
	p := Problem{Where: d.file, Key: key, What: fmt.Sprintf(format, args...)}
	if at != nil {
		p.line, p.column = at.Line, at.Column
		p.Where = fmt.Sprintf("%s:%d:%d", d.file, at.Line, at.Column)
	}
	d.problems = append(d.problems, p)
}

// placed returns the position and the cause of a YAML syntax error: the library's message begins
// with "[line:column] ".
func placed(err error) (*token.Position, string) {
	message := err.Error()
	rest, opened := strings.CutPrefix(message, "[")
	place, text, closed := strings.Cut(rest, "] ")
	if !opened || !closed {
		return nil, message
	}
	line, column, _ := strings.Cut(place, ":")
	l, lineErr := strconv.Atoi(line)
	c, columnErr := strconv.Atoi(column)
	if lineErr != nil || columnErr != nil {
		return nil, message
	}
	return &token.Position{Line: l, Column: c}, text
}

// document parses src and returns the mapping of its single document, or nil with a problem.
func (d *decoder) document(src []byte) ast.Node {
	src = bytes.TrimPrefix(src, []byte("\ufeff")) // some editors begin a file with it
	parsed, err := parser.ParseBytes(src, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		at, message := placed(err)
		message, _, _ = strings.Cut(message, "\n")
		if strings.Contains(message, "'\t'") {
			message = "a tab can't indent a line: use blanks"
		}
		d.problem(at, "", "this is not YAML: %s", message)
		return nil
	}
	var docs []*ast.DocumentNode
	for _, doc := range parsed.Docs {
		if doc.Body != nil {
			docs = append(docs, doc)
		}
	}
	switch len(docs) {
	case 0:
		d.problem(&token.Position{Line: 1, Column: 1}, "", "the file is empty: `tanist config init` writes one to begin with")
		return nil
	case 1:
		return docs[0].Body
	default:
		d.problem(position(docs[1].Body), "", "a second document begins here: one file configures one process")
		return nil
	}
}

func position(n ast.Node) *token.Position {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 {
		return position(m.Values[0])
	}
	if v, ok := n.(*ast.MappingValueNode); ok {
		return position(v.Key)
	}
	if t := n.GetToken(); t != nil {
		return t.Position
	}
	return nil
}

// resolve follows anchors, aliases and tags.
func (d *decoder) resolve(n ast.Node) ast.Node {
	for range 100 { // an alias can't refer to itself, but a file may attempt it
		switch v := n.(type) {
		case *ast.AnchorNode:
			if d.anchors == nil {
				d.anchors = map[string]ast.Node{}
			}
			d.anchors[v.Name.String()] = v.Value
			n = v.Value
		case *ast.AliasNode:
			to, ok := d.anchors[v.Value.String()]
			if !ok {
				return n
			}
			n = to
		case *ast.TagNode:
			n = v.Value
		default:
			return n
		}
	}
	return n
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// kindOf names the type of a node for people.
func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.AliasNode:
		return "an alias of nothing"
	default:
		return strconv.Quote(strings.TrimSpace(n.String()))
	}
}

func pairs(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch v := n.(type) {
	case *ast.MappingNode:
		return v.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{v}, true
	}
	return nil, false
}

var durationType = reflect.TypeFor[time.Duration]()

// decode fills v, the struct's value at path, from n.
func (d *decoder) decode(n ast.Node, v reflect.Value, path string) {
	n = d.resolve(n)
	at := position(n)
	_, isScalar := scalar(n)
	if _, ok := d.where[path]; !ok || isScalar { // the position of the key is more useful than that of a list or a mapping
		d.where[path] = at
	}
	d.origin[path] = d.file
	if _, null := n.(*ast.NullNode); null {
		d.problem(at, path, "there is no value: give one, or remove the key to get the default")
		return
	}
	switch {
	case v.Type() == durationType:
		text, ok := scalar(n)
		if !ok {
			d.problem(at, path, "%s is not a duration: write one like 3s or 500ms", kindOf(n))
			return
		}
		if err := setScalar(v, text); err != nil {
			d.problem(at, path, "%v", err)
		}
	case v.Kind() == reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
			v.Elem().Set(fresh(v.Type().Elem()))
		}
		d.decode(n, v.Elem(), path)
	case v.Kind() == reflect.Struct:
		d.mapping(n, v, path)
	case v.Kind() == reflect.Map:
		d.variableMap(n, v, path)
	case v.Kind() == reflect.Slice:
		if text, is := scalar(n); is && v.Type() == envFromType {
			v.Set(reflect.ValueOf(EnvFrom{text}))
			return
		}
		if text, is := scalar(n); is && v.Type() == commandType {
			v.Set(reflect.ValueOf(Command(strings.Fields(text))))
			return
		}
		list, ok := n.(*ast.SequenceNode)
		if !ok {
			hint := ""
			if text, isText := scalar(n); isText && v.Type().Elem().Kind() == reflect.String {
				hint = fmt.Sprintf(": write [%s]", strings.Join(strings.Fields(text), ", "))
			}
			d.problem(at, path, "%s is not a list%s", kindOf(n), hint)
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(list.Values), len(list.Values)))
		for i, item := range list.Values {
			v.Index(i).Set(fresh(v.Type().Elem()))
			d.decode(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
	default:
		text, ok := scalar(n)
		if !ok {
			d.problem(at, path, "%s is not %s", kindOf(n), words(v))
			return
		}
		if v.Kind() == reflect.Bool {
			if _, isBool := n.(*ast.BoolNode); !isBool {
				d.problem(at, path, "%s is not true or false", kindOf(n))
				return
			}
		}
		if err := setScalar(v, text); err != nil {
			d.problem(at, path, "%v", err)
		}
	}
}

// variableMap fills a mapping of names to values.
func (d *decoder) variableMap(n ast.Node, v reflect.Value, path string) {
	values, ok := pairs(n)
	if !ok {
		d.problem(position(n), path, "%s is not a mapping of names to values", kindOf(n))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	seen := map[string]bool{}
	for _, pair := range values {
		key := keyName(pair)
		if seen[key] {
			d.problem(position(pair.Key), join(path, key), "the key stands here twice")
			continue
		}
		seen[key] = true
		item := reflect.New(v.Type().Elem()).Elem()
		d.decode(pair.Value, item, join(path, key))
		v.SetMapIndex(reflect.ValueOf(key), item)
	}
}

func keyName(pair *ast.MappingValueNode) string {
	if s, ok := pair.Key.(*ast.StringNode); ok {
		return s.Value
	}
	return strings.TrimSpace(pair.Key.String())
}

func words(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Int:
		return "a whole number"
	case reflect.Bool:
		return "true or false"
	default:
		return "a text"
	}
}

// scalar returns the text of a scalar node.
func scalar(n ast.Node) (string, bool) {
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, true
	case *ast.LiteralNode:
		return v.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return strings.TrimSpace(n.GetToken().Value), true
	}
	return "", false
}

// setScalar sets v from text, for files, variables and flags.
func setScalar(v reflect.Value, text string) error {
	switch {
	case v.Type() == durationType:
		dur, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration: write one like 3s or 500ms", text)
		}
		if dur < 0 {
			return fmt.Errorf("%q is negative", text)
		}
		v.SetInt(int64(dur))
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Int:
		i, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		v.SetInt(int64(i))
	case v.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is not true or false", text)
		}
		v.SetBool(b)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
		v.Set(reflect.MakeSlice(v.Type(), 0, 4))
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				v.Set(reflect.Append(v, reflect.ValueOf(item).Convert(v.Type().Elem())))
			}
		}
	case v.Kind() == reflect.Slice && v.Type().Elem() == commandType:
		v.Set(reflect.MakeSlice(v.Type(), 0, 4))
		for item := range strings.SplitSeq(text, ",") {
			if command := Command(strings.Fields(item)); len(command) > 0 {
				v.Set(reflect.Append(v, reflect.ValueOf(command)))
			}
		}
	default:
		return fmt.Errorf("it can't be set this way; use the file")
	}
	return nil
}

// mapping fills a struct.
func (d *decoder) mapping(n ast.Node, v reflect.Value, path string) {
	values, ok := pairs(n)
	if !ok {
		d.problem(position(n), path, "%s is not a mapping; it has the keys %s", kindOf(n), strings.Join(keysOf(v.Type()), ", "))
		return
	}
	seen := map[string]bool{}
	for _, pair := range values {
		key := keyName(pair)
		at := position(pair.Key)
		field, ok := fieldOf(v, key)
		if !ok {
			d.problem(at, join(path, key), "unknown key%s", d.suggest(key, v.Type()))
			continue
		}
		if seen[key] {
			d.problem(at, join(path, key), "the key stands here twice")
			continue
		}
		seen[key] = true
		d.where[join(path, key)] = at
		d.decode(pair.Value, field, join(path, key))
	}
}

// fieldOf returns the field of a struct by its YAML key.
func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	if key == "" { // fields that no file has
		return reflect.Value{}, false
	}
	for f, value := range v.Fields() {
		if f.Tag.Get("yaml") == key {
			return value, true
		}
	}
	return reflect.Value{}, false
}

func keysOf(t reflect.Type) []string {
	var keys []string
	for f := range t.Fields() {
		if key := f.Tag.Get("yaml"); key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}

// suggest returns the probably intended key for a struct of type t: a similar one, or the same one
// in another place.
func (d *decoder) suggest(key string, t reflect.Type) string {
	hint := suggest(key, keysOf(t))
	if !strings.HasPrefix(hint, ";") || d.root == nil {
		return hint
	}
	var elsewhere []string
	for _, path := range allKeys(d.root, "") {
		if path == key || strings.HasSuffix(path, "."+key) {
			elsewhere = append(elsewhere, path)
		}
	}
	if len(elsewhere) == 0 {
		return hint
	}
	return fmt.Sprintf(" here (did you mean %s?)", strings.Join(elsewhere, " or "))
}

// allKeys returns the dotted paths of a struct's keys that are not in a list.
func allKeys(t reflect.Type, path string) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var all []string
	for f := range t.Fields() {
		if key := f.Tag.Get("yaml"); key != "" {
			all = append(all, join(path, key))
			all = append(all, allKeys(f.Type, join(path, key))...)
		}
	}
	return all
}

// suggest returns the probably intended key, as part of a message.
func suggest(key string, known []string) string {
	best, at := "", 1+max(2, len(key)/3)
	for _, k := range known {
		if d := distance(key, k); d < at {
			best, at = k, d
		}
	}
	if best == "" {
		return "; known here: " + strings.Join(known, ", ")
	}
	return fmt.Sprintf(" (did you mean %s?)", best)
}

// distance returns the Levenshtein distance of two keys.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// sorted returns the problems in the order of the file.
func (d *decoder) sorted() Problems {
	slices.SortStableFunc(d.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.column, b.column))
	})
	return d.problems
}
