package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/google/renameio/v2"

	"github.com/tanist/tanist/election"
)

// Secret says how the program gets the secret of its term. Exactly one of Env, Passfile, File and Gate is set.
type Secret struct {
	Env      string      // name of an environment variable of the program: PGPASSWORD
	Passfile string      // path of a password file in libpq's format; PGPASSFILE is set to it
	File     *SecretFile // a file of the program's own format

	// Gate is told the role and the secret instead of the program, for a [Gate] that is started with the program.
	Gate func(role, secret string)

	// Owner is who the files belong to, if not the sidecar's own user. The files are readable by the owner alone.
	Owner *Owner
}

// SecretFile is a file that is rendered with text/template at every term. The template sees .Secret, .Role, .Term, .Cluster,
// .Controller, .Host, .Port and .Database.
type SecretFile struct {
	Template string // path of the template
	Path     string // path of the file
}

// Owner is a user and a group by number.
type Owner struct{ UID, GID int }

// values are what a template of a secret file sees.
type values struct {
	Secret, Role, Cluster, Controller, Host, Database string
	Port                                              uint16
	Term                                              election.Term
}

// delivery is a checked Secret.
type delivery struct {
	Secret
	tmpl *template.Template
}

func newDelivery(s Secret) (*delivery, error) {
	n := 0
	for _, set := range []bool{s.Env != "", s.Passfile != "", s.File != nil, s.Gate != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		return nil, fmt.Errorf("cannot deliver the secret: exactly one of env, passfile, file and gate must be set, not %d", n)
	}
	d := &delivery{Secret: s}
	switch {
	case strings.ContainsAny(s.Env, "=\x00"):
		return nil, fmt.Errorf("cannot deliver the secret: %q is no name of an environment variable", s.Env)
	case s.File != nil:
		if s.File.Path == "" {
			return nil, errors.New("cannot deliver the secret: the file has no path")
		}
		text, err := os.ReadFile(s.File.Template)
		if err != nil {
			return nil, fmt.Errorf("cannot deliver the secret: %v", err)
		}
		if d.tmpl, err = template.New(s.File.Template).Option("missingkey=error").Parse(string(text)); err != nil {
			return nil, fmt.Errorf("cannot deliver the secret: %v", err)
		}
		// A template that can't be rendered is to be found now, not at a takeover.
		if err := d.tmpl.Execute(new(bytes.Buffer), values{}); err != nil {
			return nil, fmt.Errorf("cannot deliver the secret: %v", err)
		}
	}
	return d, nil
}

// deliver hands the secret over and returns what belongs into the program's environment.
func (d *delivery) deliver(v values) ([]string, error) {
	switch {
	case d.Env != "":
		return []string{d.Env + "=" + v.Secret}, nil
	case d.Passfile != "":
		role := strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(v.Role)
		if err := d.write(d.Passfile, fmt.Appendf(nil, "*:*:*:%s:%s\n", role, v.Secret)); err != nil {
			return nil, err
		}
		return []string{"PGPASSFILE=" + d.Passfile}, nil
	case d.Gate != nil:
		d.Gate(v.Role, v.Secret)
		return nil, nil
	default:
		var b bytes.Buffer
		if err := d.tmpl.Execute(&b, v); err != nil {
			return nil, fmt.Errorf("cannot deliver the secret: %v", err)
		}
		return nil, d.write(d.File.Path, b.Bytes())
	}
}

// write replaces a file atomically. It is never, not even for a moment, readable by others.
func (d *delivery) write(path string, content []byte) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o600), renameio.IgnoreUmask())
	if err != nil {
		return fmt.Errorf("cannot deliver the secret: %v", err)
	}
	defer f.Cleanup() //nolint:errcheck // nothing to clean up after success; else the first error counts
	if d.Owner != nil {
		if err := f.Chown(d.Owner.UID, d.Owner.GID); err != nil {
			return fmt.Errorf("cannot deliver the secret: %v", err)
		}
	}
	if _, err := f.Write(content); err != nil {
		return fmt.Errorf("cannot deliver the secret: %v", err)
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("cannot deliver the secret: %v", err)
	}
	return nil
}
