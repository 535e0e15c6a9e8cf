package election

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

// again fails if the value decoded from b does not survive encoding and decoding.
func again[T any](t *testing.T, b []byte, v T, err error, encode func(T) []byte, decode func([]byte) (T, error)) {
	t.Helper()
	if err != nil {
		return
	}
	text := encode(v)
	if next, err := decode(text); err != nil || !reflect.DeepEqual(next, v) {
		t.Errorf("%q is %+v, written as %q, which is %+v, %v", b, v, text, next, err)
	}
}

// plain returns a decoder of a record that is plain JSON.
func plain[T any](b []byte) (v T, err error) {
	err = json.Unmarshal(b, &v)
	return v, err
}

// FuzzRecords: whatever a stranger writes into the store, decoding does not panic, and a decoded
// value survives encoding and decoding.
func FuzzRecords(f *testing.F) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	for _, b := range [][]byte{
		Active{Controller: "ctl-a", Term: 7, State: StateServing, URL: "http://a:1", Since: since, Reason: "r", Incarnation: "i", URLs: `{"pb":"http://a:2"}`}.Encode(),
		[]byte(`{"controller":"ctl-a","term":7,"urls":{"a":["<&>",null, 1e3]}}`),
		Member{Name: "ctl-a", URL: "http://a:1", Host: "h", Gone: since}.Encode(),
		Controller{Name: "ctl-a", Incarnation: "i", Role: RolePassive, State: StateReady, Since: since, Failure: &Failure{At: since, Term: 1}}.Encode(),
		Heir{Controller: "ctl-a", Incarnation: "i", After: 7, Lease: "l", Validity: "4s"}.Encode(),
		Breadcrumb{Term: 7, Clean: true, Controller: "ctl-a", Incarnation: "i", Validity: 4 * time.Second, Reason: "a b"}.Encode(),
		Request{ID: "1", Op: "switchover", To: "ctl-b", By: "ana", Term: 7, For: time.Second}.Encode(),
		History{Term: 7, When: since, From: "a", To: "b", Outage: 1.5}.Encode(),
		Agent{Name: "agt-1", Term: 7, State: "running", Since: since, Watch: AgentWatch{Incarnation: "i", PID: 1}}.Encode(),
		[]byte(`{"by":"ana","since":"2026-01-02T03:04:05Z"}`),
		[]byte("18446744073709551615 held validity=-1s"), []byte(`{"term":-1}`), []byte(`{"since":"9999-12-31T23:59:59.999999999-23:59"}`), []byte("null"), []byte("\xff"),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		active, err := DecodeActive(b)
		again(t, b, active, err, Active.Encode, DecodeActive)
		controller, err := DecodeController(b)
		again(t, b, controller, err, Controller.Encode, DecodeController)
		heir, err := DecodeHeir(b)
		again(t, b, heir, err, Heir.Encode, DecodeHeir)
		if crumb, err := DecodeBreadcrumb(b); err == nil {
			if next, err := DecodeBreadcrumb(crumb.Encode()); err != nil || next.Term != crumb.Term || next.Clean != crumb.Clean || next.Validity != crumb.Validity {
				t.Errorf("%q is %+v, and then %+v, %v", b, crumb, next, err)
			}
		}
		member, err := DecodeMember(b)
		again(t, b, member, err, Member.Encode, DecodeMember)
		request, err := plain[Request](b)
		again(t, b, request, err, Request.Encode, plain[Request])
		history, err := plain[History](b)
		again(t, b, history, err, History.Encode, plain[History])
		agent, err := plain[Agent](b)
		again(t, b, agent, err, Agent.Encode, plain[Agent])
		pause, err := plain[Pause](b)
		again(t, b, pause, err, func(p Pause) []byte { return mustJSON(p) }, plain[Pause])
	})
}
