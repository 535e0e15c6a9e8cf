package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"sync"
	"time"
)

// Write is a route that changes something.
type Write struct {
	Summary string
	Role    Role // the lowest that may use it
	// Body returns a pointer to what the JSON of the request is decoded into. nil: it has none.
	Body func() any
	// Do begins it. Its result is the response, with the status 202 if the result's Location is set.
	// An error should be a [*Refusal]; any other one is a 500.
	Do func(r *http.Request, from Caller, body any) (Result, error)
	// Returns is a value of the type of the result's document, for the description.
	Returns any
}

// Result is the response to a write that was accepted.
type Result struct {
	Document any
	Location string // where its progress is shown, while it is in progress
}

// Refusal is why a write was not accepted.
type Refusal struct {
	Status int
	Detail string
	// GivesUp is what an operator must accept for it, by force.
	GivesUp []string
}

func (r *Refusal) Error() string { return r.Detail }

// writeHandler admits callers of the role, and decodes the body.
func (c *Config) writeHandler(pattern string, route Write, denied *denials) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		from := c.caller(r)
		if from.Role < route.Role {
			status := http.StatusForbidden
			if from.Via == "" || from.Via == "token" && from.Role == RoleNone { // it has not shown who it is
				status = http.StatusUnauthorized
				w.Header().Set("WWW-Authenticate", "Bearer")
			}
			if n := denied.note(time.Now()); n > 0 {
				c.Log.Warn().Str("route", pattern).Str("by", from.Name).Str("via", from.Via).Str("remote", r.RemoteAddr).Int("denied", n).Msg("a request to change something is denied")
			}
			Problem(w, status, fmt.Sprintf("this needs the role %v: %s", route.Role, from.Why))
			return
		}
		var body any
		if route.Body != nil {
			body = route.Body()
		}
		if refusal := decode(r, body); refusal != nil {
			Problem(w, refusal.Status, refusal.Detail)
			return
		}
		result, err := route.Do(r, from, body)
		refusal, isRefusal := errors.AsType[*Refusal](err)
		switch {
		case isRefusal && len(refusal.GivesUp) > 0:
			write(w, refusal.Status, "application/problem+json", map[string]any{
				"type": "about:blank", "title": http.StatusText(refusal.Status), "status": refusal.Status, "detail": refusal.Detail, "gives_up": refusal.GivesUp,
			})
		case isRefusal:
			Problem(w, refusal.Status, refusal.Detail)
		case err != nil:
			Problem(w, http.StatusInternalServerError, err.Error())
		case result.Location != "":
			w.Header().Set("Location", result.Location)
			write(w, http.StatusAccepted, "application/json", result.Document)
		default:
			write(w, http.StatusOK, "application/json", result.Document)
		}
	})
}

// decode decodes the body of a request. A page in a browser cannot send JSON elsewhere without being
// asked first, so nothing but JSON is taken.
func decode(r *http.Request, into any) *Refusal {
	text, err := io.ReadAll(r.Body)
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return &Refusal{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the request has a body of more than %d bytes", maxBody)}
	}
	if err != nil {
		return &Refusal{Status: http.StatusBadRequest, Detail: "cannot read the body of the request"}
	}
	kind := r.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(kind); (err != nil || media != "application/json") && (len(text) > 0 || kind != "") {
		return &Refusal{Status: http.StatusUnsupportedMediaType, Detail: "the body must be JSON: Content-Type: application/json"}
	}
	switch {
	case len(text) == 0:
		return nil
	case into == nil:
		return &Refusal{Status: http.StatusBadRequest, Detail: "this takes no body"}
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return &Refusal{Status: http.StatusBadRequest, Detail: fmt.Sprintf("cannot read the body: %v: /v1/openapi.json has its fields", err)}
	}
	if d.More() {
		return &Refusal{Status: http.StatusBadRequest, Detail: "the body has more than one JSON value"}
	}
	return nil
}

// denials bounds how often denied requests are logged: anybody can send them.
type denials struct {
	mu   sync.Mutex
	last time.Time
	n    int
}

// note returns how many were denied since the last time that it was to be logged, or 0 if it is not
// to be logged now.
func (d *denials) note(now time.Time) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n++
	if now.Sub(d.last) < time.Second {
		return 0
	}
	n := d.n
	d.last, d.n = now, 0
	return n
}
