package postgres

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tanist/tanist/election"
)

// The fence's refusals from an arbitrary server cause no panic, and a definitive one has exactly
// one reason.
func FuzzRefusal(f *testing.F) {
	f.Add("TN001", `{"term":7,"holder":"b","phase":"open","attempt":1}`, uint64(3))
	f.Add("TN003", `{"term":7,"holder":null,"phase":"closed","attempt":0}`, uint64(7))
	f.Add("TN002", `{"term":-1,"attempt":9223372036854775807}`, uint64(1))
	f.Add("TN001", `[]`, uint64(0))
	f.Add("28P01", "", uint64(0))
	f.Fuzz(func(t *testing.T, code, text string, mine uint64) {
		pe := &pgconn.PgError{Code: code, Detail: text}
		err := definitive(pe, election.Term(mine))
		said, _ := refusal(pe) // empty if it can't be parsed
		if said != "" && said != code || errors.Is(err, ErrTerm) != (said == stateAhead || said == statePhase) {
			t.Errorf("%s %q: %v", code, text, err)
		}
		if ahead, ok := errors.AsType[*AheadError](err); ok && ahead.Error() == "" {
			t.Error("no words")
		}
		_ = advice(err)
	})
}

// No error shows a secret part of a connection string, unless it is the name of a host.
func FuzzDSN(f *testing.F) {
	const mark = "Zq7"
	for _, s := range []string{"", "@", "/", "p@ss/", "a b", "'", `\`, "?x=", "#", "%", "%4", ":1/", " host=", "=", "[", "\n"} {
		f.Add(s, s)
		f.Add("geheim", s)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		secret := before + mark + after
		for _, dsn := range []string{
			"postgres://u:" + secret + "@db.example:5432/d?sslmode=disable", "postgres://u:p@db.example/" + secret,
			"host=db.example user=u password=" + secret + " dbname=d", "host=db.example password='" + secret + "'", secret,
		} {
			err := CheckDSN(dsn)
			if err == nil {
				_, err = WithoutLogin(dsn)
			}
			var cfg *pgconn.Config
			if err == nil {
				parsed, e := parse(dsn, 1)
				if err = e; e == nil {
					cfg = &parsed.Config
				}
			}
			if err != nil && strings.Contains(err.Error(), mark) && !strings.Contains(err.Error(), "/") { // a file's name may be shown
				t.Errorf("%q: %v", dsn, err)
			}
			if cfg == nil {
				continue
			}
			text := unconnected(errors.New("refused "+secret), cfg).Error()
			if strings.Contains(text, mark) && !hostName(cfg.Host) {
				t.Errorf("%q: %s", dsn, text)
			}
			bare, err := WithoutLogin(dsn)
			if err != nil {
				t.Errorf("%q: %v", dsn, err)
			}
			if left, err := pgconn.ParseConfig(bare); err == nil && left.Password != "" && left.Password == cfg.Password && strings.Contains(left.Password, mark) {
				t.Errorf("%q: the password is in %q", dsn, bare)
			}
		}
	})
}

// A misread connection string shows no part of a password, neither as a host name nor in any other
// way.
func TestErrorsShowNothingOfAPassword(t *testing.T) {
	for _, dsn := range []string{
		"postgres://u:pa@geheim@127.0.0.1:1/d", "postgres://u:pa@geheim/x@127.0.0.1:1/d", "postgres://u:pa/geheim@127.0.0.1:1/d", "postgres://u:pa?geheim@127.0.0.1:1/d",
		"postgres://u:pa#geheim@127.0.0.1:1/d", "postgres://u:pa geheim@127.0.0.1:1/d", "host=127.0.0.1 port=1 password=pa geheim user=u",
		"host=127.0.0.1 port=1 user=u password=pa geheim=x dbname=d", "host=127.0.0.1 port=1 password='pa' geheim' user=u", "host=127.0.0.1 port=geheim",
		"host='127.0.0.1 geheim' port=1", "host=127.0.0.1 port=1 user=u dbname=geheim password=geheim connect_timeout=1",
	} {
		f, err := NewFence(Config{Cluster: "c", Controller: "a", Role: "r", DSN: dsn, Secret: Secret{Env: "PGPASSWORD"}})
		if err == nil {
			err = f.Ready(t.Context())
			f.Shutdown()
		}
		if err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %v", dsn, err)
		}
		if _, err := Check(t.Context(), CheckOptions{DSN: dsn, Cluster: "c"}); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: check: %v", dsn, err)
		}
	}
}
