package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/postgres/gate"
	"github.com/tanist/tanist/process"
)

// gateInput is the input of a gate for one term. It contains no login of the sidecar.
type gateInput struct {
	Cluster, Controller string
	Listen              string
	Owner               *postgres.Owner
	DSN                 string
	Role, Secret        string
	Password            string
	Log                 config.Log
}

func (i gateInput) config() gate.Config {
	return gate.Config{Listen: i.Listen, Owner: i.Owner, DSN: i.DSN, Role: i.Role, Secret: i.Secret, Password: i.Password}
}

// makeGate checks the configuration of the gate, and returns the function that makes each term's
// gate the companion of the controller. It rereads the repository's address and the program's
// password for each term. If the new ones are unusable, the previous ones remain in force.
func makeGate(c *config.Controller, readDSN func() (string, error), owner *postgres.Owner, accompany func(*process.Companion)) (func(role, secret string), error) {
	g := c.Repository.Secret.Gate
	read := func() (gateInput, error) {
		input := gateInput{Cluster: c.Cluster, Controller: c.Name, Listen: g.Listen, Owner: owner, Log: c.Log}
		var err error
		if input.Password, err = SecretFile(g.PasswordFile); err != nil {
			return input, fmt.Errorf("repository.secret.gate.password_file: %v", err)
		}
		dsn, err := readDSN()
		if err == nil {
			input.DSN, err = postgres.WithoutLogin(dsn)
		}
		if err != nil {
			return input, fmt.Errorf("repository.dsn_file: %v", err)
		}
		_, err = gate.New(input.config())
		return input, err
	}
	last, err := read()
	if err != nil {
		return nil, err
	}
	return func(role, secret string) {
		if fresh, err := read(); err == nil {
			last = fresh
		}
		input := last
		input.Role, input.Secret = role, secret
		accompany(input.companion())
	}, nil
}

// companion returns the gate as a companion of the controller.
func (i gateInput) companion() *process.Companion {
	input, err := json.Marshal(i) //nolint:gosec // it reaches the gate through sealed memory only
	if err != nil {
		panic(err) // texts and numbers only
	}
	return &process.Companion{Args: []string{"gate"}, Env: gateEnvironment(os.Environ()), Input: input}
}

// gateEnvironment returns the part of the environment that a gate needs: libpq's variables that
// lead to the repository, but not its user. It contains no secret.
func gateEnvironment(all []string) []string {
	env := []string{"GOMAXPROCS=4"}
	for _, kv := range all {
		key, _, _ := strings.Cut(kv, "=")
		switch key {
		case "PGUSER", "PGPASSWORD", "PGPASSFILE":
		case "HOME", "USER", "NO_COLOR", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ":
			env = append(env, kv)
		default:
			if strings.HasPrefix(key, "PG") {
				env = append(env, kv)
			}
		}
	}
	return env
}

// GateMain runs the gate, which a guard starts as `tanist gate` next to the controller. It returns
// the exit code.
func GateMain() int {
	attendance, err := process.Attend("tanist-gate")
	if err != nil {
		fmt.Fprintf(os.Stderr, "tanist gate: %v (it is started by a guard, not by hand)\n", err)
		return exit.Usage
	}
	var input gateInput
	err = json.Unmarshal(attendance.Input, &input)
	clear(attendance.Input)
	if err != nil {
		attendance.Ready(fmt.Errorf("cannot open the gate: %v", err))
		return exit.Usage
	}
	cfg := input.config()
	cfg.Deadline = attendance.Deadline
	log := OpenLog(input.Log, os.Stderr)
	defer log.Close()
	cfg.Log = log.With().Str("cluster", input.Cluster).Str("controller", input.Controller).Logger()
	g, err := gate.New(cfg)
	if err == nil {
		err = g.Run(context.Background(), func(net.Addr) { attendance.Ready(nil) })
	}
	if err != nil {
		attendance.Ready(err)
		return exit.Failure
	}
	return exit.OK
}
