package election

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestOneURLRule(t *testing.T) {
	for raw, want := range map[string]string{
		"http://10.0.0.11:8080":             "http://10.0.0.11:8080",
		"http://10.0.0.11":                  "http://10.0.0.11:80",
		"https://Ctl-A.Example":             "https://ctl-a.example:443",
		"HTTP://a/":                         "http://a:80",
		"http://a/x/":                       "http://a:80/x",
		"http://a/%2f~b":                    "http://a:80/%2f~b",
		"http://[::1]:8080":                 "http://[::1]:8080",
		"http://[::FFFF:10.0.0.1]:80":       "http://10.0.0.1:80",
		"http://[2001:DB8:0:0:0:0:0:1]":     "http://[2001:db8::1]:80",
		"http://under_score.x.:1":           "http://under_score.x.:1",
		"http://" + strings.Repeat("a", 63): "http://" + strings.Repeat("a", 63) + ":80",
	} {
		u, err := ParseURL(raw)
		if err != nil || u.String() != want {
			t.Errorf("%q: %q, %v; want %q", raw, u, err, want)
		}
	}
	for raw, want := range map[string]string{
		"":                                      "is missing",
		"ctl-a:8080":                            "neither http:// nor https://",
		"tcp://a:1":                             "neither http:// nor https://",
		"http:///x":                             "has no host",
		"http:a":                                "has a path with more",
		"http://a:0":                            "has no port from 1",
		"http://a:99999":                        "has no port from 1",
		"http://a:":                             "a colon and no port",
		"http://a:b":                            "cannot be read",
		"http://a?x=1":                          "a query or a fragment",
		"http://a?":                             "a query or a fragment",
		"http://a#x":                            "a query or a fragment",
		"http://a#":                             "a query or a fragment",
		"http://a/b;c":                          "has a character other",
		"http://a/b c":                          "has a character other",
		"http://a//b":                           "an empty part",
		"http://a/x/../b":                       "an empty part",
		"http://a/.":                            "an empty part",
		"http://u:secret@a":                     "user or password",
		"http://[fe80::1%25eth0]:1":             "IPv6 zone",
		"http://0.0.0.0:80":                     "at which no controller can be reached",
		"http://[::]:80":                        "at which no controller can be reached",
		"http://224.0.0.1":                      "at which no controller can be reached",
		"http://010.0.0.1":                      "neither an IP address nor a name",
		"http://2130706433":                     "neither an IP address nor a name",
		"http://-x:80":                          "no valid host",
		"http://a..b":                           "no valid host",
		"http://a'b":                            "has a character other",
		"http://" + strings.Repeat("a", 64):     "no valid host",
		"http://a/" + strings.Repeat("a", 2000): "bytes",
		"http://x;\n server evil":               "cannot be read",
	} {
		_, err := ParseURL(raw)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", raw, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: a password is shown: %v", raw, err)
		}
	}
}

func TestControllersAreComparedByPlace(t *testing.T) {
	list, err := ParseControllers([]string{"http://A.test:8080/", "https://b.test/app/"})
	if err != nil {
		t.Fatal(err)
	}
	f := NewFilter(list)
	for raw, ok := range map[string]bool{
		"http://a.test:8080": true, "http://a.test:8080/": true, "https://b.test:443/app": true, "https://b.test/app": true,
		"https://a.test:8080": false, "http://a.test": false, "https://b.test": false, "https://b.test/app/x": false, "https://b.test/App": false,
	} {
		if _, err := f.CheckURL(raw); (err == nil) != ok {
			t.Errorf("%s: %v", raw, err)
		}
	}
	if _, err := ParseControllers([]string{"http://b", "nope", "HTTP://B:80/"}); err == nil ||
		!strings.Contains(err.Error(), "controllers[1]: ") || !strings.Contains(err.Error(), "controllers[2]: \"HTTP://B:80/\" is listed twice") {
		t.Errorf("%v", err)
	}
}

func serving(term Term) *Active {
	return &Active{Controller: "ctl-a", Term: term, State: StateServing, URL: "http://a:1", API: "http://a:2"}
}

func TestTermsOnlyGoUp(t *testing.T) {
	f, now := NewFilter(nil), time.Unix(0, 0)
	see := func(a *Active) Verdict { return f.Sighting(Sighting{Active: a}, now) }
	if v := see(serving(8)); v.Err != nil || !v.Target.Serving() || v.Target.Term != 8 || v.Target.At.Port != 1 {
		t.Errorf("%+v", v)
	}
	if _, old := errors.AsType[*OldTermError](see(serving(7)).Err); !old {
		t.Error("an older term passes")
	}
	// A term that was only seen before it serves counts too.
	up := serving(10)
	up.State = StateStarting
	if v := see(up); v.Err != nil || v.Target.Serving() || f.Seen() != 10 {
		t.Errorf("%+v", v)
	}
	if see(serving(9)).Err == nil {
		t.Error("an older term passes")
	}
	// A record that is refused for another reason does not count.
	evil := serving(99)
	evil.URL = "file:///x"
	if v := see(evil); v.Err == nil || f.Seen() != 10 {
		t.Errorf("%+v, seen %d", v, f.Seen())
	}
}

func TestForgedTermsAreBounded(t *testing.T) {
	for _, term := range []Term{0, MaxTerm + 1, 1 << 62, 1<<64 - 1} {
		f := NewFilter(nil)
		if v := f.Sighting(Sighting{Active: serving(term)}, time.Now()); v.Err == nil || f.Seen() != 0 {
			t.Errorf("term %d: %+v", term, v)
		}
		if v := f.Answer(serving(term)); v.Err == nil || f.Seen() != 0 {
			t.Errorf("term %d as an answer: %+v", term, v)
		}
		if f.Remember(term); f.Seen() != 0 {
			t.Errorf("term %d is remembered", term)
		}
	}
}

func TestAnswersOfSidecarsJumpNoFurtherThanTakeoversGo(t *testing.T) {
	f := NewFilter(nil)
	f.Remember(7)
	if v := f.Answer(serving(8 + MaxJump)); v.Err == nil || f.Seen() != 7 {
		t.Errorf("%+v, seen %d", v, f.Seen())
	}
	if v := f.Answer(serving(7 + MaxJump)); v.Err != nil || f.Seen() != 7+MaxJump {
		t.Errorf("%+v, seen %d", v, f.Seen())
	}
	if v := f.Answer(serving(7)); v.Err == nil {
		t.Error("an older term passes")
	}
	// The store may report any term.
	if v := f.Sighting(Sighting{Active: serving(1e9)}, time.Now()); v.Err != nil {
		t.Error(v.Err)
	}
}

func TestStoreThatInsistsOnALowerTermIsBelieved(t *testing.T) {
	f, now := NewFilter(nil), time.Unix(0, 0)
	f.Remember(MaxTerm) // forged, or of a store that was restored
	see := func(s Sighting, after time.Duration) Verdict { now = now.Add(after); return f.Sighting(s, now) }
	low := Sighting{Active: serving(7)}
	v := see(low, 0)
	if v.Err == nil || !v.Again.Equal(now.Add(LowerFor)) {
		t.Fatalf("%+v", v)
	}
	if v = see(Sighting{Active: serving(8)}, LowerFor-1); v.Err == nil || !v.Again.Equal(now.Add(1)) {
		t.Fatalf("%+v", v)
	}
	// An outage restarts the wait.
	see(Sighting{Active: serving(8), Err: errors.New("away")}, 0)
	if v = see(low, 1); v.Err == nil {
		t.Fatalf("%+v", v)
	}
	if v = see(Sighting{}, 1); v != (Verdict{}) { // and so does a vacancy
		t.Fatalf("%+v", v)
	}
	if v = see(low, LowerFor); v.Err == nil {
		t.Fatalf("%+v", v)
	}
	v = see(low, LowerFor)
	if v.Err != nil || !v.Back || f.Seen() != 7 || v.Target.Term != 7 {
		t.Fatalf("%+v, seen %d", v, f.Seen())
	}
	if v = see(Sighting{Active: serving(8)}, 0); v.Err != nil || v.Back {
		t.Errorf("%+v", v)
	}
}

func TestSignedAnswerIsGoodForOneQuestion(t *testing.T) {
	s := Secret("0123456789abcdef")
	sig := s.SignAnswer("/v1/cluster", "n", []byte("{}"))
	if !s.Answered("/v1/cluster", "n", []byte("{}"), sig) {
		t.Error("refused")
	}
	for i, ok := range []bool{
		s.Answered("/v1/status", "n", []byte("{}"), sig),
		s.Answered("/v1/cluster", "m", []byte("{}"), sig),
		s.Answered("/v1/cluster", "n", []byte("{} "), sig),
		s.Answered("/v1/cluster", "n", []byte("{}"), ""),
		s.Answered("/v1/cluster", "", []byte("{}"), s.SignAnswer("/v1/cluster", "", []byte("{}"))),
		Secret("0123456789abcdeg").Answered("/v1/cluster", "n", []byte("{}"), sig),
	} {
		if ok {
			t.Errorf("case %d is accepted", i)
		}
	}
	if Secret("0123456789abcde").Validate() == nil || s.Validate() != nil {
		t.Error("Validate")
	}
}

// Whatever is accepted is an address and nothing else, and equals its own canonical form.
func FuzzParseURL(f *testing.F) {
	for _, s := range []string{
		"http://a", "https://[::1]:8443/x", "http://a/x?y=1&z", "http://a'b", "http://a:99999", "http://a b", "javascript:alert(1)",
		"http://a\n", "http://[fe80::1%25eth0]", "http://u:p@a", "http://x;\n server evil", "http://%41:1", "HTTP://A:080/%2F/", "http://a/..", "//a", "http://1.2.3",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := ParseURL(raw)
		if err != nil {
			return
		}
		if strings.ContainsAny(raw, " \t\r\n'\"`$\\;|<>(){}*!^&?#@\x00") || u.Host == "" || u.Port == 0 || (u.Scheme != "http" && u.Scheme != "https") {
			t.Errorf("%q is accepted as %+v", raw, u)
		}
		if again, err := ParseURL(u.String()); err != nil || again != u {
			t.Errorf("%q compares as %q: %+v, %v", raw, u, again, err)
		}
	})
}

// No record makes a filter panic, go back, or pass on what it has not checked.
func FuzzFilter(f *testing.F) {
	f.Add([]byte(`{"controller":"ctl-a","term":7,"state":"serving","url":"http://10.0.0.1:8080","api":"http://10.0.0.1:8710"}`))
	f.Add([]byte(`{"controller":"ctl-a","term":9007199254740993,"state":"serving","url":"http://10.0.0.1"}`))
	f.Add([]byte(`{"controller":"x;\n","term":1,"state":"evil","url":""}`))
	f.Add([]byte(`{"controller":"ctl-a","term":7,"state":"stopping","url":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := DecodeActive(b)
		if err != nil {
			return
		}
		list, _ := ParseControllers([]string{"http://10.0.0.1:8080"})
		for _, filter := range []*Filter{NewFilter(nil), NewFilter(list)} {
			filter.Remember(5)
			v := filter.Sighting(Sighting{Active: &a}, time.Unix(0, 0))
			if filter.Seen() < 5 || filter.Seen() > MaxTerm {
				t.Errorf("%q: seen %d", b, filter.Seen())
			}
			if v.Err != nil {
				continue
			}
			if CheckName(v.Target.Controller) != nil || v.Target.Term < 5 || (v.Target.Serving() && v.Target.At.Host == "") {
				t.Errorf("%q passes as %+v", b, v.Target)
			}
			if _, err := filter.CheckURL(v.Target.URL); err != nil && v.Target.URL != "" {
				t.Errorf("%q: %v", b, err)
			}
		}
	})
}

func ExampleFilter() {
	controllers, _ := ParseControllers([]string{"http://10.0.0.11:8080", "http://10.0.0.12:8080"})
	f := NewFilter(controllers)
	record := Active{Controller: "ctl-b", Term: 8, State: StateServing, URL: "http://10.0.0.12:8080/"}
	fmt.Println(f.Sighting(Sighting{Active: &record}, time.Now()).Target.At)
	record.Term = 7
	fmt.Println(f.Sighting(Sighting{Active: &record}, time.Now()).Err)
	// Output:
	// http://10.0.0.12:8080
	// term 7 (ctl-b) is older than term 8, which has been seen
}
