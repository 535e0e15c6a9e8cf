package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/process"
)

// gateInput is what a gate is told: all that it needs for one term, and no login of the sidecar's.
type gateInput struct {
	Cluster, Controller string
	Listen              string
	Owner               *postgres.Owner
	DSN                 string
	Role, Secret        string
	Password            string
	Log                 config.Log
}

func (i gateInput) config() postgres.GateConfig {
	return postgres.GateConfig{Listen: i.Listen, Owner: i.Owner, DSN: i.DSN, Role: i.Role, Secret: i.Secret, Password: i.Password}
}

// makeGate checks what a configuration says of the gate, and returns what makes each term's gate the companion of the controller.
func makeGate(c *config.Controller, dsn string, owner *postgres.Owner, accompany func(*process.Companion)) (func(role, secret string), error) {
	g := c.Repository.Secret.Gate
	password, err := secretFile(g.PasswordFile)
	if err != nil {
		return nil, fmt.Errorf("password_file: %v", err)
	}
	input := gateInput{Cluster: c.Cluster, Controller: c.Name, Listen: g.Listen, Owner: owner, Password: password, Log: c.Log}
	if input.DSN, err = postgres.WithoutLogin(dsn); err != nil {
		return nil, err
	}
	if _, err := postgres.NewGate(input.config()); err != nil {
		return nil, err
	}
	return func(role, secret string) {
		input := input
		input.Role, input.Secret = role, secret
		accompany(input.companion())
	}, nil
}

// companion is the gate as a companion of the controller.
func (i gateInput) companion() *process.Companion {
	input, err := json.Marshal(i)
	if err != nil {
		panic(err) // texts and numbers only
	}
	return &process.Companion{Args: []string{"gate"}, Env: gateEnvironment(os.Environ()), Input: input}
}

// gateEnvironment is what a gate needs of the environment: how libpq's variables lead to the repository, but not who logs in
// there. It is not where a secret could be.
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

// gateMain is the gate: what a guard runs as `tanist gate` beside the controller. It returns the exit code.
func gateMain() int {
	attendance, err := process.Attend("tanist-gate")
	if err != nil {
		fmt.Fprintf(os.Stderr, "tanist gate: %v (it is started by a guard, not by hand)\n", err)
		return exitUsage
	}
	var input gateInput
	err = json.Unmarshal(attendance.Input, &input)
	clear(attendance.Input)
	if err != nil {
		attendance.Ready(fmt.Errorf("cannot open the gate: %v", err))
		return exitUsage
	}
	cfg := input.config()
	cfg.Deadline = attendance.Deadline
	cfg.Log = newLog(input.Log, os.Stderr).With().Str("cluster", input.Cluster).Str("controller", input.Controller).Logger()
	gate, err := postgres.NewGate(cfg)
	if err == nil {
		err = gate.Run(context.Background(), func(net.Addr) { attendance.Ready(nil) })
	}
	if err != nil {
		attendance.Ready(err)
		return exitFailure
	}
	return exitOK
}
