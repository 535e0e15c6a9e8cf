package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	pgstore "github.com/tanist/tanist/backends/postgres"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/postgres"
)

func storeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "store", Short: "Prepare a PostgreSQL database as the store", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(storeInitCommand(), storeRemoveCommand())
	return cmd
}

// storeLogins are the flags that name the logins of a store, by what they may do.
type storeLogins map[pgstore.Kind]*[]string

func (l storeLogins) flags(f *pflag.FlagSet) {
	for _, k := range []struct {
		kind        pgstore.Kind
		flag, usage string
	}{
		{pgstore.KindController, "login", "`LOGIN[:PASSWORD_FILE]` of sidecars and operators (repeatable)"},
		{pgstore.KindAgent, "agent-login", "`LOGIN[:PASSWORD_FILE]` of agentwatches, which write only the status of agents (repeatable)"},
		{pgstore.KindVIP, "vip-login", "`LOGIN[:PASSWORD_FILE]` of tanist vip, which writes only its status (repeatable)"},
		{pgstore.KindReader, "reader-login", "`LOGIN[:PASSWORD_FILE]` of proxies and dashboards, which write nothing (repeatable)"},
	} {
		l[k.kind] = f.StringArray(k.flag, nil, k.usage)
	}
}

// logins reads the passwords from their files.
func (l storeLogins) logins() ([]pgstore.Login, error) {
	var all []pgstore.Login
	for kind, values := range l {
		for _, value := range *values {
			name, file, has := strings.Cut(value, ":")
			login := pgstore.Login{Name: name, Kind: kind}
			if has {
				password, err := daemon.SecretFile(file)
				if err == nil {
					login.Verifier, err = postgres.Verifier(password)
				}
				if err != nil {
					return nil, exit.Errorf(exit.Config, "the login %s: %v", name, err)
				}
			}
			all = append(all, login)
		}
	}
	return all, nil
}

func storeInitCommand() *cobra.Command {
	var o pgstore.SetupOptions
	var dsnFile string
	var apply bool
	logins := storeLogins{}
	cmd := &cobra.Command{
		Use:   "init --cluster NAME --login LOGIN[:PASSWORD_FILE]...",
		Short: "Print the SQL that prepares a PostgreSQL database as the store, or apply it", Args: noArgs,
		Long: "Print the SQL that prepares a PostgreSQL database as the store of a cluster; with --apply, run it. It should be run by a superuser;\n" +
			"nothing of Tanist needs one afterwards. It may be run again, to add a cluster or a login or after an upgrade, and disturbs nothing\n" +
			"that runs. A database can be the store of many clusters, and the repository too: see `tanist repository init --store`.",
		Example: "  tanist store init --cluster orders --login tanist_orders:/run/secrets/store --agent-login tanist_orders_agents | psql -v ON_ERROR_STOP=1 orders",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Logins, err = logins.logins(); err != nil {
				return err
			}
			return prepareStore(cmd, o, apply, dsnFile)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Cluster, "cluster", "", "name of the cluster")
	logins.flags(f)
	f.BoolVar(&apply, "apply", false, "run the SQL instead of printing it")
	f.StringVar(&dsnFile, "dsn-file", "", "file with the connection string of a superuser (default: libpq's PG* variables)")
	return cmd
}

// prepareStore prints the SQL, or applies it.
func prepareStore(cmd *cobra.Command, o pgstore.SetupOptions, apply bool, dsnFile string) error {
	sql, err := pgstore.SetupSQL(o)
	if err != nil {
		return exit.Errorf(exit.Usage, "%v", err)
	}
	if !apply {
		fmt.Fprint(cmd.OutOrStdout(), sql)
		return nil
	}
	dsn, err := storeDSN(dsnFile)
	if err != nil {
		return err
	}
	if err := pgstore.Init(cmd.Context(), dsn, o); err != nil {
		return databaseError(err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "the store of %s is ready: %s\n", o.Cluster, plural(len(o.Logins), "login"))
	return nil
}

// storeDSN returns a superuser's connection string.
func storeDSN(file string) (string, error) {
	dsn, err := operatorDSN(file)
	if err != nil {
		return "", err
	}
	if err := postgres.CheckDSN(dsn); err != nil {
		return "", exit.Errorf(exit.Config, "%v", err)
	}
	return dsn, nil
}

func storeRemoveCommand() *cobra.Command {
	var cluster, dsnFile string
	var force, apply bool
	cmd := &cobra.Command{
		Use: "remove --cluster NAME", Short: "Print the SQL that removes a cluster from a PostgreSQL store, or apply it", Args: noArgs,
		Example: "  tanist store remove --cluster orders --force --apply",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cluster == "" {
				return exit.Errorf(exit.Usage, "which cluster? Give --cluster NAME")
			}
			if !apply {
				fmt.Fprint(cmd.OutOrStdout(), pgstore.RemoveSQL(cluster))
				return nil
			}
			if !force {
				return exit.Errorf(exit.Force, "this ends the reign in %s, and its history is lost: stop all sidecars of it, then use --force", cluster)
			}
			dsn, err := storeDSN(dsnFile)
			if err != nil {
				return err
			}
			if err := pgstore.Remove(cmd.Context(), dsn, cluster); err != nil {
				return databaseError(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s was removed from the store; its logins stay\n", cluster)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cluster, "cluster", "", "name of the cluster")
	f.BoolVar(&force, "force", false, "confirm that no sidecar of the cluster runs anywhere")
	f.BoolVar(&apply, "apply", false, "run the SQL instead of printing it")
	f.StringVar(&dsnFile, "dsn-file", "", "file with the connection string of a superuser (default: libpq's PG* variables)")
	return cmd
}
