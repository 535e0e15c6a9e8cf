package postgres

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestWithoutLogin(t *testing.T) {
	for _, dsn := range []string{
		"postgres://me:geheim@h1:5433,h2:5434/db?sslmode=disable&application_name=x",
		"postgresql://h1:5433,h2:5434/db?sslmode=disable&user=me&password=geheim&passfile=/geheim",
		`host=h1,h2 port = 5433,5434 user=me password='ge\'h eim geheim' dbname=db sslmode=disable`,
		`password=ge\ heim\'geheim host=h1,h2 port=5433,5434 dbname='db' sslmode = 'disable' passfile=geheim`,
	} {
		got, err := WithoutLogin(dsn)
		if err != nil || strings.Contains(got, "heim") || strings.Contains(got, "me") && !strings.Contains(got, "name") {
			t.Errorf("%s: %s, %v", dsn, got, err)
		}
		cfg, err := pgconn.ParseConfig(got)
		if err != nil || cfg.Host != "h1" || cfg.Port != 5433 || len(cfg.Fallbacks) != 1 || cfg.Fallbacks[0].Host != "h2" || cfg.Fallbacks[0].Port != 5434 ||
			cfg.Database != "db" || cfg.TLSConfig != nil {
			t.Errorf("%s: %s is %+v, %v", dsn, got, cfg, err)
		}
	}
	for _, dsn := range []string{"geheim", "password='geheim", "postgres://[geheim"} {
		if _, err := WithoutLogin(dsn); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %v", dsn, err)
		}
	}
}
