package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/spf13/cobra"
)

// consulSetupCommand is `tanist-lab consul-setup`: it creates the policies and tokens of the lab on
// Consul. The tokens' secrets are given, so that every container can have its own from the start. It
// can be run again.
func consulSetupCommand() *cobra.Command {
	var address, ca, management string
	cmd := &cobra.Command{
		Use: "consul-setup TOKEN_FILE=POLICY_FILE...", Short: "create policies and tokens", Hidden: true, Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := api.DefaultConfig()
			c.Address, c.TokenFile, c.TLSConfig.CAFile = address, management, ca
			client, err := api.NewClient(c)
			if err != nil {
				return fmt.Errorf("cannot use Consul: %v", err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Minute)
			defer cancel()
			// The servers need some seconds to elect a leader, which creates the management token.
			if err := wait(ctx, 2*time.Minute, "Consul to have a leader", func(ctx context.Context) error {
				_, _, err := client.ACL().PolicyList(new(api.QueryOptions).WithContext(ctx))
				return err
			}); err != nil {
				return err
			}
			for _, a := range args {
				token, policy, ok := strings.Cut(a, "=")
				if !ok {
					return fmt.Errorf("%q: write TOKEN_FILE=POLICY_FILE", a)
				}
				if err := grant(ctx, client, token, policy); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&address, "address", "", "a server of Consul")
	f.StringVar(&ca, "ca", "", "file with the authority of its certificate")
	f.StringVar(&management, "management", "", "file with a token that may do everything")
	return cmd
}

// grant gives the token in a file the rules in a file of deploy/consul, written for the lab's
// cluster.
func grant(ctx context.Context, client *api.Client, tokenFile, policyFile string) error {
	secret, err := os.ReadFile(tokenFile)
	if err != nil {
		return fmt.Errorf("cannot read a token: %v", err)
	}
	rules, err := os.ReadFile(policyFile)
	if err != nil {
		return fmt.Errorf("cannot read a policy: %v", err)
	}
	name := "lab-" + strings.TrimSuffix(filepath.Base(policyFile), ".hcl")
	write := new(api.WriteOptions).WithContext(ctx)
	policy := &api.ACLPolicy{Name: name, Rules: strings.ReplaceAll(string(rules), "orders", cluster)}
	if have, _, err := client.ACL().PolicyReadByName(name, new(api.QueryOptions).WithContext(ctx)); err == nil && have != nil {
		policy.ID = have.ID
		_, _, err = client.ACL().PolicyUpdate(policy, write)
		if err != nil {
			return fmt.Errorf("cannot update the policy %s: %v", name, err)
		}
	} else if _, _, err := client.ACL().PolicyCreate(policy, write); err != nil {
		return fmt.Errorf("cannot create the policy %s: %v", name, err)
	}
	token := &api.ACLToken{SecretID: strings.TrimSpace(string(secret)), Description: name, Policies: []*api.ACLTokenPolicyLink{{Name: name}}}
	own := new(api.QueryOptions).WithContext(ctx)
	own.Token = token.SecretID
	_, _, err = client.ACL().TokenReadSelf(own)
	if status, ok := errors.AsType[api.StatusError](err); ok && status.Code == http.StatusForbidden {
		if _, _, err = client.ACL().TokenCreate(token, write); err == nil {
			fmt.Printf("%s: token created\n", name)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot create the token of %s: %v", name, err)
	}
	return nil
}
