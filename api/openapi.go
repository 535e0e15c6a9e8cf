package api

import (
	"encoding"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"
)

// OpenAPIPath is where a server shows the OpenAPI description of its routes.
const OpenAPIPath = "/v1/openapi.json"

// Description is what the OpenAPI description says of a route for which [Config] has only a function.
type Description struct {
	Summary string
	Returns any // a value of the type of the response
}

// route is a route of a server, as it is described.
type route struct {
	method, path string
	Description
	body    any    // of the request; nil: none
	role    Role   // the lowest that may use it
	answers string // the kind of response: "json", "yes", "events", "text", "write"
}

// object is a JSON object.
type object = map[string]any

// description returns the OpenAPI 3.1 document of the routes. Its schemas are those of the Go types.
func description(routes []route) object {
	b := &schemas{components: object{}}
	problem := b.of(reflect.TypeFor[problemDocument]())
	paths := object{}
	for _, r := range routes {
		item, _ := paths[r.path].(object)
		if item == nil {
			item = object{}
			paths[r.path] = item
		}
		op := object{
			"summary": r.Summary, "operationId": operationID(r), "responses": b.responses(r, problem), "x-tanist-role": r.role.String(),
		}
		if r.role > RoleNone {
			op["security"] = []object{{"token": []string{}}, {"certificate": []string{}}}
		}
		var parameters []object
		for part := range strings.SplitSeq(r.path, "/") {
			if name, ok := strings.CutPrefix(part, "{"); ok {
				parameters = append(parameters, object{"name": strings.TrimSuffix(name, "}"), "in": "path", "required": true, "schema": object{"type": "string"}})
			}
		}
		if parameters != nil {
			op["parameters"] = parameters
		}
		if r.body != nil {
			op["requestBody"] = object{"content": object{"application/json": object{"schema": b.of(reflect.TypeOf(r.body))}}}
		}
		item[strings.ToLower(r.method)] = op
	}
	return object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Tanist", "version": "1",
			"description": "The REST interface of a Tanist process. x-tanist-role is the lowest role that may use an operation: none, viewer, operator, admin. " +
				"On the Unix socket of listen.admin nothing is sent: the kernel tells who calls. On this host, viewers need not prove who they are.",
		},
		"paths": paths,
		"components": object{
			"schemas": b.components,
			"securitySchemes": object{
				"token":       object{"type": "http", "scheme": "bearer"},
				"certificate": object{"type": "mutualTLS"},
			},
		},
	}
}

// operationID returns a name such as "put-v1-standbys-name".
func operationID(r route) string {
	clean := strings.Map(func(c rune) rune {
		if c == '{' || c == '}' {
			return -1
		}
		return c
	}, strings.ToLower(r.method)+r.path)
	return strings.Trim(strings.NewReplacer("/", "-", ".", "-").Replace(clean), "-")
}

// problemDocument is the document of [Problem].
type problemDocument struct {
	Type    string   `json:"type"`
	Title   string   `json:"title"`
	Status  int      `json:"status"`
	Detail  string   `json:"detail"`
	GivesUp []string `json:"gives_up,omitempty"` // what an operator must accept for it, by force
}

// responses describes the responses of a route.
func (b *schemas) responses(r route, problem object) object {
	response := func(text, media string, schema object) object {
		return object{"description": text, "content": object{media: object{"schema": schema}}}
	}
	of := func(status int) object { return response(http.StatusText(status), "application/problem+json", problem) }
	body := object{}
	if r.Returns != nil {
		body = b.of(reflect.TypeOf(r.Returns))
	}
	all := object{}
	switch r.answers {
	case "yes":
		all["200"], all["503"] = response("yes", "application/json", body), response("no", "application/json", body)
		return all
	case "write":
		all["200"], all["202"] = response("done", "application/json", body), response("begun; Location shows how it goes", "application/json", body)
		for _, status := range []int{400, 401, 403, 404, 409, 413, 415, 503} {
			all[fmt.Sprint(status)] = of(status)
		}
		return all
	case "events":
		all["200"] = response("server-sent events", "text/event-stream", object{"type": "string"})
	case "text":
		all["200"] = response("metrics", "text/plain", object{"type": "string"})
	default:
		all["200"] = response("the document", "application/json", body)
	}
	if r.role > RoleNone {
		all["401"] = of(http.StatusUnauthorized)
	}
	if strings.Contains(r.path, "{") {
		all["404"] = of(http.StatusNotFound)
	}
	all["503"] = of(http.StatusServiceUnavailable)
	return all
}

// schemas collects the JSON schemas of Go types.
type schemas struct{ components object }

// of returns the schema of the JSON of a type: a reference for a struct.
func (b *schemas) of(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t.Implements(reflect.TypeFor[json.Marshaler]()):
		return object{}
	case t.Implements(reflect.TypeFor[encoding.TextMarshaler]()):
		return object{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return b.of(t.Elem())
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.Slice, reflect.Array:
		return object{"type": "array", "items": b.of(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": b.of(t.Elem())}
	case reflect.Struct:
		return b.ofStruct(t)
	case reflect.Interface:
		return object{}
	default:
		return object{"type": "integer"}
	}
}

func (b *schemas) ofStruct(t reflect.Type) object {
	name := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(t.Name()[:1])+t.Name()[1:], "Document"), "Record")
	ref := object{"$ref": "#/components/schemas/" + name}
	if _, known := b.components[name]; known {
		return ref
	}
	schema := object{"type": "object"}
	b.components[name] = schema // before its fields, which may be of the same type
	properties, required := object{}, []string{}
	b.fields(t, properties, &required)
	schema["properties"] = properties
	if len(required) > 0 {
		slices.Sort(required)
		schema["required"] = required
	}
	return ref
}

// fields adds the fields of a struct. Those of embedded structs are its own.
func (b *schemas) fields(t reflect.Type, properties object, required *[]string) {
	for f := range t.Fields() {
		key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case key == "-" || !f.IsExported() && !f.Anonymous:
			continue
		case f.Anonymous && key == "":
			b.fields(f.Type, properties, required)
			continue
		case key == "":
			key = f.Name
		}
		schema := b.of(f.Type)
		if text := f.Tag.Get("doc"); text != "" {
			if _, isRef := schema["$ref"]; isRef {
				schema = object{"allOf": []object{schema}}
			}
			schema["description"] = text
		}
		properties[key] = schema
		if !strings.Contains(options, "omit") && f.Tag.Get("optional") == "" {
			*required = append(*required, key)
		}
	}
}
