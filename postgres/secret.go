package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"

	"github.com/google/renameio/v2"

	"github.com/tanist/tanist/election"
)

// Secret selects how the program receives the secret of its term. Exactly one of Env, Passfile,
// File and Gate is set.
type Secret struct {
	Env      string      // name of an environment variable of the program: PGPASSWORD
	Passfile string      // path of a password file in libpq's format; PGPASSFILE is set to it
	File     *SecretFile // a file in the program's own format

	// Gate receives the role and the secret in place of the program, for a [Gate] that starts with
	// the program.
	Gate func(role, secret string)

	// Owner owns the files; the default is the sidecar's own user. Only the owner can read them.
	Owner *Owner
}

// SecretFile is a file that is rendered with text/template in every term. The template can use
// .Secret, .Role, .Term, .Cluster, .Controller, .Host, .Port and .Database.
type SecretFile struct {
	Template string // path of the template
	Path     string // path of the file
}

// Owner is a numeric user and group.
type Owner struct{ UID, GID int }

// values are the data of a secret file's template.
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

// variable describes the name of an environment variable.
var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Validate reports what is wrong with s, in a line for each key of the configuration file.
func (s *Secret) Validate() error {
	var errs []error
	wrong := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("repository.secret"+key+": "+format, args...))
	}
	n := 0
	for _, set := range []bool{s.Env != "", s.Passfile != "", s.File != nil, s.Gate != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		wrong("", "give exactly one of env, passfile, file, gate: how the program gets its secret")
	}
	if s.Env != "" && !variable.MatchString(s.Env) {
		wrong(".env", "%q can't be the name of a variable", s.Env)
	}
	if s.Passfile != "" && !filepath.IsAbs(s.Passfile) {
		wrong(".passfile", "%q is not an absolute path", s.Passfile)
	}
	if s.File != nil && (s.File.Template == "" || s.File.Path == "") {
		wrong(".file", "give both template and path")
	}
	return errors.Join(errs...)
}

// newDelivery reads the template of a valid Secret.
func newDelivery(s Secret) (*delivery, error) {
	d := &delivery{Secret: s}
	if s.File == nil {
		return d, nil
	}
	text, err := os.ReadFile(s.File.Template)
	if err == nil {
		d.tmpl, err = template.New(s.File.Template).Option("missingkey=error").Parse(string(text))
	}
	if err == nil {
		err = d.tmpl.Execute(new(bytes.Buffer), values{}) // find a template that can't be rendered now, not at a takeover
	}
	if err != nil {
		return nil, fmt.Errorf("repository.secret.file.template: %v", err)
	}
	return d, nil
}

// deliver hands over the secret and returns what belongs in the program's environment.
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

// write replaces a file atomically. Others can't read it at any moment.
func (d *delivery) write(path string, content []byte) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o600), renameio.IgnoreUmask())
	if err != nil {
		return fmt.Errorf("cannot deliver the secret: %v", err)
	}
	defer f.Cleanup() //nolint:errcheck // nothing to clean up after success; otherwise the first error counts
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
