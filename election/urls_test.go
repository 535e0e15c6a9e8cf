package election

import (
	"strings"
	"testing"
	"time"
)

// TestNamedURLs: one rule for the configuration and for the followers of a record.
func TestNamedURLs(t *testing.T) {
	main, err := ParseURL("http://10.0.0.11:8080")
	if err != nil {
		t.Fatal(err)
	}
	many := map[string]string{}
	for i := range 17 {
		many["a"+string(rune('a'+i))] = "http://10.0.0.11:1"
	}
	for _, tc := range []struct {
		name  string
		named map[string]string
		want  string
	}{
		{"none", nil, ""},
		{"two ports", map[string]string{"web": "https://10.0.0.11:8443/ui", "pb": "http://10.0.0.11:9989"}, ""},
		{"another host", map[string]string{"web": "http://10.0.0.66:8443"}, "web: the host 10.0.0.66 is not 10.0.0.11"},
		{"a command", map[string]string{"web": "http://10.0.0.11:80/$(id)"}, "web: "},
		{"a password", map[string]string{"web": "http://a:hunter2@10.0.0.11"}, "web: it has a user or password in it"},
		{"a name with a dot", map[string]string{"we.b": "http://10.0.0.11:80"}, `"we.b" is not a name`},
		{"a name of a number", map[string]string{"1": "http://10.0.0.11:80"}, `"1" is not a name`},
		{"no name", map[string]string{"": "http://10.0.0.11:80"}, `"" is not a name`},
		{"too many", many, "it has 17 URLs"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			urls, err := NewURLs(main, tc.named)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a password is in %v", err)
			}
			record := Active{Controller: "ctl-a", Term: 1, State: StateServing, URL: main.String(), URLs: urls, Since: time.Unix(1, 0).UTC()}
			again, decodeErr := DecodeActive(record.Encode())
			if decodeErr != nil || again != record {
				t.Errorf("the record became %+v, %v", again, decodeErr)
			}
			v := NewFilter(nil).Sighting(Sighting{Active: &again}, time.Now())
			if (v.Err == nil) != (tc.want == "") {
				t.Errorf("a follower's verdict: %v", v.Err)
			}
			if v.Err == nil && v.Target.URLs != urls {
				t.Errorf("a follower has %q, want %q", v.Target.URLs, urls)
			}
		})
	}
}

// TestStrangeURLsAreNotFollowedAndHurtNobodyElse: a record with them is readable, so holder and
// candidates act as before.
func TestStrangeURLsAreNotFollowedAndHurtNobodyElse(t *testing.T) {
	for _, urls := range []string{`["http://h:1"]`, `7`, `"x"`, `{"web":7}`, `{"web":{"a":"b"}}`, `"<&>"`} {
		a, err := DecodeActive([]byte(`{"controller":"ctl-a","term":1,"state":"serving","url":"http://h:1","urls": ` + urls + `}`))
		if err != nil {
			t.Errorf("%s: %v", urls, err)
			continue
		}
		if v := NewFilter(nil).Sighting(Sighting{Active: &a}, time.Now()); v.Err == nil || !strings.HasPrefix(v.Err.Error(), "urls: ") {
			t.Errorf("%s: the verdict is %v", urls, v.Err)
		}
		if again, err := DecodeActive(a.Encode()); err != nil || again != a {
			t.Errorf("%s became %+v, %v", urls, again, err)
		}
	}
	for _, none := range []string{`null`, `{}`} {
		a, err := DecodeActive([]byte(`{"controller":"ctl-a","term":1,"state":"serving","url":"http://h:1","urls":` + none + `}`))
		if err != nil || a.URLs != "" {
			t.Errorf("%s: %q, %v", none, a.URLs, err)
		}
	}
}
